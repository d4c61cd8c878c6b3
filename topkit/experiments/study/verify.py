"""Whether a run or a capture is still, to the byte, what was written."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topkit.documents import path_of, quote
from topkit.errors import InputError
from topkit.experiments.capture import files, manifest
from topkit.experiments.runs import folder, run_file
from topkit.experiments.runs.folder_files import parts


@dataclass(frozen=True)
class Verified:
    """What a folder is (run or capture), how many files its manifests list, and what is wrong with them."""

    path: Path
    kind: str
    files: int
    faults: tuple[str, ...] = ()


def verify(path: str | Path) -> Verified:
    """Hold a run or a capture to its manifests: every part or file, by its sha256.

    Nothing is written, and a run may go on meanwhile: a part that is being written is no fault.
    Raises: InputError naming a file that was altered, copied in, deleted or cannot be read, and for a
    folder that holds neither, or a run of an earlier topkit, whose rows have no digests.
    """
    verified = inspect(path_of(path, "the folder of a run or a capture"))
    folder.raise_first(verified.faults)
    return verified


def inspect(path: Path) -> Verified:
    """As `verify`, but what is wrong is listed. Raises: InputError where there is nothing to verify."""
    try:
        return _inspected(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {quote(str(path))}: {why}") from error


def _inspected(path: Path) -> Verified:
    if path.is_file():
        raise InputError(f"{path} is a file: expected the folder of a run or a capture")
    if (path / manifest.MANIFEST).exists() or any(path.glob(manifest.OF_SAMPLES)):
        return _of_capture(path)
    run = run_file.read(path)
    if run is None:
        folder.require_nobodys(path)
        raise InputError(
            f"{path} holds neither a run ({run_file.NAME}) nor a capture ({manifest.MANIFEST})"
        )
    if "id" not in run:
        raise InputError(
            f"{path} was written by {folder.writer(run)} before rows had digests: there is nothing to "
            "hold them to; run it again into another folder"
        )
    count = sum(1 for _ in parts(path))
    return Verified(path, "run", count, tuple(folder.faults(path, run)))


def _of_capture(path: Path) -> Verified:
    """A capture; one that was interrupted is held to the manifests of the samples that it has."""
    whole = (path / manifest.MANIFEST).exists()
    if whole:
        contents = [manifest.open_manifest(path)]
    else:
        contents = [manifest.unseal(one) for one in sorted(path.glob(manifest.OF_SAMPLES))]
    listed = [entry for content in contents for entry in content["files"]]
    faults = list[str]()
    for entry in listed:
        try:
            files.verify_file(path, entry)
        except InputError as error:
            faults.append(str(error))
    names = {entry["name"] for entry in listed}
    # Beside an unfinished manifest stands what a killed run wrote of its next sample.
    others = [one for one in sorted(path.glob("*.safetensors")) if one.name not in names]
    faults += [f"{one} is not of this capture: no manifest lists it" for one in others if whole]
    return Verified(path, "capture", len(listed), tuple(faults))
