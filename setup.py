"""What setup.cfg cannot say: the README as an index shows it, and packages whose bytes follow from their files."""

import gzip
import os
import re
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist


def without_local_links(markdown: str) -> str:
    """A page without pictures and links to files beside it, which lead nowhere on an index: they become their names."""
    markdown = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", markdown)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)([^)]*)\)", _named, markdown)


def _named(link: re.Match[str]) -> str:
    text, target = link.groups()
    return f"`{target}`" if text == target else f"{text} (`{target}`)"


class ReproducibleSdist(sdist):
    """With SOURCE_DATE_EPOCH: no times but that one, no owners, and modes that do not depend on the umask."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = int(epoch), 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w", dereference=True) as tar,
        ):
            tar.add(base_dir, filter=plain)  # folders in alphabetical order
        return path


class ReproducibleWheel(bdist_wheel):
    """With modes that depend neither on the umask nor on how the files were checked out."""

    def write_wheelfile(self, *args, **kwargs):
        super().write_wheelfile(*args, **kwargs)  # the last file that is put into `bdist_dir`
        for path in Path(self.bdist_dir).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


setup(
    long_description=without_local_links(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    cmdclass={"bdist_wheel": ReproducibleWheel, "sdist": ReproducibleSdist},
)
