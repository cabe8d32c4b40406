"""Tools that every other folder uses: checked values, atomic files, progress, safe text, threads and ranks."""
