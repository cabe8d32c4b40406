"""Tools that every other folder uses: checked values, atomic files, progress bars, safe text, threads and ranks."""
