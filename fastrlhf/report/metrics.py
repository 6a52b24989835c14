"""The metrics file of a run: one JSON object per line, written as the run goes and read back afterwards.

Every line is valid JSON. A number that JSON cannot write (NaN, an infinity) becomes ``null``, which a reader
gets as ``None``: the metric was measured and was not finite. A metric that was not measured has no key.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class MetricsWriter:
    """Appends the metrics of each step to a JSON-lines file.

    Nothing is opened or created before the first write, so that every rank may hold a writer and only one use
    it. The file is opened for each line: a step takes seconds and opening takes microseconds, and in return
    each line is on its way to the disk when `write` returns and no handle has to be closed.

    Args:
        path: the file, usually ``metrics.jsonl`` in the run's directory; missing directories are created.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append ``{"step": step, **metrics}`` as one line.

        Args:
            step: the step that the metrics belong to; a ``"step"`` in `metrics` gives way to it.
            metrics: names to numbers, strings, lists or mappings. One-element tensors and NumPy scalars count
                as numbers; NaN and infinities are written as ``null``.

        Raises:
            TypeError: if a value cannot be written as JSON; the message names the metric. Nothing is written.
        """
        row = {"step": int(step)}
        row.update((name, _jsonable(name, value)) for name, value in metrics.items() if name != "step")
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            _end_last_line(file)
            file.write(line)

    def truncate_after(self, step: int) -> int:
        """Drop the lines of later steps, and a last line torn by a kill, for a run that resumes at `step`.

        The file is replaced atomically: a kill in the middle leaves either the old file or the new one. Lines
        that stay are kept byte for byte.

        Args:
            step: the step that the run resumes from, the last one to keep.

        Returns:
            The number of lines dropped, 0 if there is no file.

        Raises:
            ValueError: if another line than the last is no JSON object; the file is left as it is.
        """
        if not self.path.exists():
            return 0
        lines = _read_lines(self.path)
        keep = [line for line, row in lines if row is not None and not _is_after(row, step)]
        if len(keep) < len(lines):
            scratch = self.path.with_name(self.path.name + ".tmp")
            with open(scratch, "wb") as file:
                file.writelines(line + b"\n" for line in keep)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.path)
        return len(lines) - len(keep)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, in the order they were written.

    A last line that a kill left unfinished is passed over. NaN and infinities, which other writers put into
    such files although JSON has no word for them, are read as ``None``.

    Args:
        path: the file.

    Returns:
        One dictionary per line; empty lines are skipped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if another line than the last is no JSON object; the message names the file and the line.
    """
    return [row for _, row in _read_lines(Path(path)) if row is not None]


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Each line that is not empty, without its line end, and its row; a torn last line has the row None."""
    lines = []
    *ended, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(ended, 1):
        if line.strip():
            lines.append((line, _parse(line, f"{path}:{number}")))
    if last.strip():
        # Without a line end, the line is whole only if the kill fell between its last byte and the line end.
        try:
            lines.append((last, _parse(last, str(path))))
        except ValueError:
            lines.append((last, None))
    return lines


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=lambda name: None)
    except ValueError as error:
        raise ValueError(f"{where}: not a line of JSON ({error}). Remove or mend the line.") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected a JSON object, got {type(row).__name__}. Remove or mend the line."
        )
    return row


def _end_last_line(file: BinaryIO) -> None:
    """Put the end of a file at a line end, since a line torn by a kill would swallow the next one."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    start = file.read().rfind(b"\n") + 1
    file.seek(start)
    try:
        _parse(file.read(), "")
    except ValueError:
        file.truncate(start)
    else:
        file.write(b"\n")


def _is_after(row: dict[str, Any], step: int) -> bool:
    """Whether a row belongs to a later step. A row without a step is about the whole run and stays."""
    return isinstance(row.get("step"), int | float) and row["step"] > step


def _jsonable(name: str, value: Any) -> Any:
    """`value` in types that `json` writes as valid JSON."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        # Tensors and NumPy scalars, told by their interface so that neither library has to be imported here.
        try:
            return _jsonable(name, value.item())
        except (RuntimeError, ValueError) as error:
            raise TypeError(
                f"metric {name!r} must be one number, got {type(value).__name__}: {error}"
            ) from error
    raise TypeError(f"metric {name!r} must be a number, a string or a list, got {type(value).__name__}.")
