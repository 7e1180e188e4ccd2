"""The worker's rich side: MIME bundles, figures, tracebacks, completion, IPython. Python 3.8 or later; loaded by path."""

from __future__ import annotations

import base64
import json
import keyword
import os
import re
import sys
import traceback
import warnings

TYPE_CHECKING = False  # `typing` is not loaded for annotations only
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
METHODS = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_latex_", "text/latex"),
    ("_repr_json_", "application/json"),
    ("_repr_javascript_", "application/javascript"),
    ("_repr_pdf_", "application/pdf"),
)
MAX_TEXT = 1 << 20
MAX_MIME = 200  #: what is called by more is no type
MAX_LINE = 2048  #: of a traceback: 200 such lines fit into a record, however their characters are written

warnings.filterwarnings(
    "ignore", message=".*(non-interactive|non-GUI backend).*"
)  # plt.show(): figures are shown by us


def bundle(value: Any, shell: Any = None) -> dict[str, Any]:
    """What can be shown of a value, by MIME type; text/plain is always there."""
    data: dict[str, Any] = {}
    if shell is not None:
        data = dict(shell.display_formatter.format(value)[0])
    elif not isinstance(value, type):
        whole = _call(value, "_repr_mimebundle_")
        if isinstance(whole, tuple):
            whole = whole[0]
        if isinstance(whole, dict):
            data.update(whole)
        for method, mime in METHODS:
            if mime not in data:
                shown = _call(value, method)
                if isinstance(shown, tuple):
                    shown = shown[0]
                if shown is not None:
                    data[mime] = shown
    if "text/plain" not in data:
        data["text/plain"] = repr(value)
    return {mime: _portable(shown) for mime, shown in data.items()}


def _call(value: Any, method: str) -> Any:
    try:
        return getattr(value, method)()
    except Exception:
        return None


def _portable(shown: Any) -> Any:
    if isinstance(shown, (bytes, bytearray)):
        return base64.b64encode(shown).decode("ascii")
    if isinstance(shown, str) and len(shown) > MAX_TEXT * 3:
        return shown[: MAX_TEXT * 3]
    return shown


def encode(data: dict[str, Any], limit: int) -> bytes:
    """The bundle as JSON of at most `limit` bytes: what is too large is left out, and the text says so."""
    data = {mime: shown for mime, shown in data.items() if isinstance(mime, str) and len(mime) <= MAX_MIME}
    try:
        body = json.dumps(data).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError):
        data = {mime: shown if isinstance(shown, str) else str(shown) for mime, shown in data.items()}
        body = json.dumps(data).encode()
    while len(body) > limit:
        largest = max(data, key=lambda mime: len(json.dumps(data[mime])))
        if largest == "text/plain":
            data["text/plain"] = str(data["text/plain"])[: MAX_TEXT // 8] + " ... (cut)"
        else:
            del data[largest]
            text = str(data.get("text/plain", ""))[: MAX_TEXT // 8]
            data["text/plain"] = f"{text}\n({largest} is left out: it is larger than {limit >> 20} MiB)"
        body = json.dumps(data).encode()
    return body


def figures(shell: Any = None) -> list[dict[str, Any]]:
    """The matplotlib figures that a cell left open, as bundles; they are closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not hasattr(pyplot, "get_fignums"):
        return []
    try:
        if pyplot.get_backend().lower() != "agg":
            return []
        import io

        found = []
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            out = io.BytesIO()
            figure.savefig(out, format="png", bbox_inches="tight")
            found.append({"image/png": base64.b64encode(out.getvalue()).decode("ascii"), "text/plain": repr(figure)})
        return found
    finally:
        pyplot.close("all")


def failure(error: BaseException) -> bytes:
    """The JSON of an error record. The worker's own frames are left out of the traceback."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == WORKER:
        frames = frames.tb_next
    if isinstance(error, KeyboardInterrupt) and frames is not None:
        _cut(frames)
    try:
        lines = traceback.format_exception(type(error), error, frames)
    except BaseException:
        lines = [type(error).__name__ + "\n"]
    try:
        text = str(error)
    except BaseException:
        text = "(the exception's own __str__ failed)"
    if len(lines) > 200:
        lines = [*lines[:100], f"  ... {len(lines) - 200} more ...\n", *lines[-100:]]
    lines = [line[:MAX_LINE] for line in lines]
    told = {"ename": type(error).__name__[:1000], "evalue": text[:65536], "traceback": lines}
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


def _cut(frames: TracebackType) -> None:
    """Leave out the worker's frames at the end of a traceback: the handler that turned the signal into the exception."""
    while frames.tb_next is not None:
        if frames.tb_next.tb_frame.f_code.co_filename == WORKER:
            frames.tb_next = None
            return
        frames = frames.tb_next


DOTTED = re.compile(r"((?:[A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)*)\.(\w*)$")
WORD = re.compile(r"\w+$")


def complete(session: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Names that may follow: {suggestions, start, end}, offsets in the line."""
    line = str(request.get("line") or "")
    col = request.get("col")
    if not line:
        lines = str(request.get("code") or "").split("\n")
        row = request.get("row")
        row = row if isinstance(row, int) and 0 <= row < len(lines) else len(lines) - 1
        line = lines[row]
    col = col if isinstance(col, int) and 0 <= col <= len(line) else len(line)
    before = line[:col]
    if session.shell is not None:
        text, matches = session.shell.complete("", before, len(before))
        return {"suggestions": list(matches)[:500], "start": col - len(text), "end": col}
    namespace = session.namespace
    dotted = DOTTED.search(before)
    if dotted:
        try:
            value = eval(dotted.group(1), namespace)
        except Exception:
            return {"suggestions": [], "start": col, "end": col}
        stem = dotted.group(2)
        names = {name for name in dir(value) if name.startswith(stem) and (stem or not name.startswith("_"))}
    elif re.match(r"\s*(import|from)\s+[\w.]*$", before):
        import pkgutil

        found = WORD.search(before)
        stem = found.group(0) if found else ""
        names = {m.name for m in pkgutil.iter_modules()} | set(sys.builtin_module_names)
        names = {name for name in names if name.startswith(stem) and stem}
    else:
        found = WORD.search(before)
        stem = found.group(0) if found else ""
        names = set()
        if stem and not re.search(r"[.\)\]\"']\s*\w*$", before):
            builtins = session.namespace["__builtins__"]
            every = set(namespace) | set(dir(builtins)) | set(keyword.kwlist)
            names = {name for name in every if name.startswith(stem)}
    return {
        "suggestions": sorted(names, key=lambda n: (n.startswith("_"), n))[:500],
        "start": col - len(stem),
        "end": col,
    }


def ipython_shell(session: Any) -> Any:
    """IPython's magics, transformer, formatters and completer around the same namespace; None when it cannot be had."""
    try:
        os.environ.setdefault("IPYTHONDIR", "/tmp/.ipython")
        from importlib import import_module

        publisher: Any = import_module("IPython.core.displaypub").DisplayPublisher
        interactive: Any = import_module("IPython.core.interactiveshell").InteractiveShell
        config: Any = import_module("traitlets.config").Config()
        config.HistoryManager.enabled = False
        config.HistoryManager.hist_file = ":memory:"
        config.InteractiveShell.colors = "NoColor"
        shell: Any = interactive.instance(config=config, user_module=session.module, user_ns=session.namespace)
    except Exception as error:
        print(f"IPython cannot be used: {error}", file=sys.stderr)
        return None

    class Publisher(publisher):  # type: ignore[misc]
        def publish(self, data: Any, metadata: Any = None, **kwargs: Any) -> None:
            session.publish({mime: _portable(shown) for mime, shown in data.items()})

        def clear_output(self, wait: bool = False) -> None:
            pass

    made: Any = Publisher
    shell.display_pub = made(shell=shell, parent=shell)
    shell.system = shell.system_raw  # straight to our pipes, no pexpect
    shell.enable_gui = lambda gui=None: None
    shell.Completer.use_jedi = False
    session.namespace["__builtins__"].display = session.display
    return shell
