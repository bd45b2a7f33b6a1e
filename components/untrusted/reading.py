"""Reads archives and HDF5 files of unknown authors: what is in them is limited before it takes memory."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import h5py

from edgeline.errors import UserError, first_line
from edgeline.files import most_bytes

#: Of a config: the largest of Keras' applications has 1 MB, and JSON takes twenty times its size in memory.
MAX_CONFIG_BYTES = 64 * 2**20
#: Groups in groups of an HDF5 file; a layer in a model in a model has a dozen.
_MAX_GROUPS = 200


def json_of(content: bytes | str, what: str) -> Any:
    """Returns what a JSON text says.

    Raises:
      UserError: it is too long or too deep, or no JSON.
    """
    if len(content) > MAX_CONFIG_BYTES:
        raise UserError(f"{what} is {len(content):,} bytes, allowed are {MAX_CONFIG_BYTES:,}")
    try:
        return json.loads(content)
    except RecursionError:
        raise UserError(f"{what} is nested too deep") from None
    except ValueError as error:
        raise UserError(f"{what} is damaged or incomplete: {error}") from error


class Archive:
    """A zip file whose members are what they say they are.

    Args:
      path: of the file.

    Raises:
      UserError: a member is there twice or has a path that leads out, or the members would take too much.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise UserError(f"{path} is damaged or incomplete: {error}") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            name = member.filename
            parts = PurePosixPath(name).parts
            if name in self._members:
                raise UserError(f"{path} has {name!r} twice")
            if "\\" in name or name.startswith("/") or ".." in parts or stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{path} has a member with the path {name!r}, which leads out of it")
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted")
            self._members[name] = member
        total, packed = sum(m.file_size for m in members), path.stat().st_size
        if total > most_bytes(packed):
            raise UserError(
                f"{path} ({packed:,} bytes) would take {total:,} bytes when it is unpacked, allowed are "
                f"{most_bytes(packed):,}"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """Returns the members' names, without those of folders."""
        return [name for name in self._members if not name.endswith("/")]

    def json(self, name: str) -> Any:
        """Returns what a JSON member says.

        Raises:
          UserError: it is too long or too deep, damaged, or not there.
        """
        member = self._members.get(name)
        if member is None:
            raise UserError(f"{self._path} has no {name}")
        if member.file_size > MAX_CONFIG_BYTES:
            raise UserError(f"{name} in {self._path} is {member.file_size:,} bytes, allowed are {MAX_CONFIG_BYTES:,}")
        try:
            with zipfile.ZipFile(self._path) as archive:
                content = archive.read(name)
        except Exception as error:  # zlib's, zipfile's and the system's
            raise UserError(f"{name} in {self._path} is damaged: {error}") from error
        return json_of(content, f"{name} in {self._path}")

    def extract(self, name: str, target: Path) -> None:
        """Writes a member to a file.

        Raises:
          UserError: it is damaged.
        """
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(name) as content, target.open("wb") as file:
                shutil.copyfileobj(content, file, 2**20)
        except Exception as error:
            raise UserError(f"{name} in {self._path} is damaged: {error}") from error


def check_hdf5(path: Path) -> None:
    """Checks that an HDF5 file holds groups and arrays of its own, of limited size.

    Raises:
      UserError: it is damaged, refers to other files or to itself, or its arrays would take too much.
    """
    packed = path.stat().st_size
    total = 0
    groups: set[Any] = set()

    def refuse(name: str, reason: str) -> UserError:
        return UserError(f"{name!r} in {path} {reason}")

    try:
        with h5py.File(path, "r") as file:
            waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
            while waiting:
                group, depth = waiting.pop()
                address = h5py.h5o.get_info(group.id).addr
                if address in groups or depth > _MAX_GROUPS:
                    raise refuse(group.name, "is a group that is part of itself, or nested too deep")
                groups.add(address)
                for name in group:
                    whole = f"{group.name.rstrip('/')}/{name}"
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        raise refuse(whole, "is a link to another place or file")
                    value = group[name]
                    if isinstance(value, h5py.Group):
                        waiting.append((value, depth + 1))
                    elif isinstance(value, h5py.Dataset):
                        if value.external or value.is_virtual:
                            raise refuse(whole, "has its values in another file")
                        if value.dtype.hasobject:
                            raise refuse(whole, "holds values of no fixed size")
                        total += value.size * value.dtype.itemsize if value.shape is not None else 0
                    else:
                        raise refuse(whole, f"is a {type(value).__name__}, which no model needs")
    except UserError:
        raise
    except Exception as error:  # HDF5's own have many classes
        raise UserError(f"{path} is damaged or incomplete: {first_line(error)}") from error
    if total > most_bytes(packed):
        raise UserError(
            f"the arrays in {path} ({packed:,} bytes) would take {total:,} bytes, allowed are {most_bytes(packed):,}"
        )


def check_folder(folder: Path) -> None:
    """Checks that nothing in a folder is a link, or anything else than a file or a folder.

    Raises:
      UserError: names what is not.
    """
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{path} is a link or a device, where a model has files of its own")
