"""What is looked for in the use of what is held: rules with thresholds, judged on figures, each with its reasons.

Pure: figures in, findings out. `SETTINGS` are the declared thresholds; administrators change them for all or for a project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from domain.durations import span
from domain.errors import InvalidRequest

Settings = Mapping[str, Mapping[str, float]]
_DAY: Final = 86400.0
_GIB: Final = float(1 << 30)
_MIB: Final = float(1 << 20)

#: rule -> setting -> declared value. `enabled` is 1 or 0, shares are between 0 and 1, memory is in MiB.
SETTINGS: Final[Settings] = MappingProxyType(
    {
        "gpu_idle": {"enabled": 1, "window_seconds": 1800, "max_share": 0.05},
        "cpu_idle": {"enabled": 1, "window_seconds": 3600, "max_share": 0.02, "min_cpu": 2},
        "memory_unused": {"enabled": 1, "window_seconds": 3600, "max_share": 0.1, "min_mem": 4096},
        "egress": {"enabled": 1, "window_seconds": 3600, "max_bytes": 50 * _GIB},
        "fork_storm": {"enabled": 1, "window_seconds": 600, "max_processes": 1000},
        "oom_loop": {"enabled": 1, "window_seconds": 600, "max_kills": 3},
        "over_long": {"enabled": 1, "max_seconds": 7 * _DAY},
        # idle checkers, which end sessions (manager/idle.py); a session's own idle_timeout and lifetime need none of these
        "idle": {"enabled": 1, "warn_seconds": 300},
        "idle_no_call": {"enabled": 0, "timeout_seconds": 4 * 3600},
        "idle_low_use": {"enabled": 0, "window_seconds": 3600, "max_cpu_share": 0.02, "max_gpu_share": 0.05},
        "idle_lifetime": {"enabled": 0, "max_seconds": 7 * _DAY},
    }
)
#: Samples have to tell of so much of a window before its average means anything.
COVERAGE: Final = 0.8


def with_changes(base: Settings, changes: Settings) -> dict[str, dict[str, float]]:
    """`base` with these settings in place of its own."""
    return {rule: {**values, **changes.get(rule, {})} for rule, values in base.items()}


def check_changes(changes: Mapping[str, Mapping[str, float]]) -> None:
    """Raises InvalidRequest for rules, settings and values that make no sense."""
    for rule, values in changes.items():
        if rule not in SETTINGS:
            raise InvalidRequest(f"There is no rule '{rule[:40]}'; there are {', '.join(SETTINGS)}.", field=rule[:40])
        for name, value in values.items():
            where = f"{rule}.{name[:40]}"
            if name not in SETTINGS[rule]:
                known = ", ".join(SETTINGS[rule])
                raise InvalidRequest(f"The rule {rule} has no setting '{name[:40]}'; it has {known}.", field=where)
            most = 1.0 if name == "enabled" or name.endswith("share") else 1e15
            if not 0 <= value <= most or (name == "enabled" and value not in (0, 1)):
                raise InvalidRequest(f"{where} is between 0 and {most:g}, and not {value:g}.", field=where)
            if name == "window_seconds" and not 1 <= value <= 7 * _DAY:
                raise InvalidRequest(f"{where} is between 1 s and 7 days, and not {value:g}.", field=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a session's containers used over a window, together."""

    since: datetime
    until: datetime
    covered: float = 0.0  #: the share of the window that samples tell of, of the container that they tell least of
    cpu: float = 0.0  #: CPUs on average
    mem_max: float = 0.0  #: MiB, each container's most
    tx_bytes: int = 0
    processes: int = 0  #: of one container, the most
    forks_refused: int = 0
    oom_kills: int = 0
    gpu: float = 0.0  #: busy devices on average
    gpus_seen: int = 0  #: devices that told of themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A session under watch: what it holds, since when it runs, and its windows by their length."""

    held_cpu: float
    held_mem: float  #: MiB
    held_gpus: float
    running_seconds: float
    windows: Mapping[float, Window]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one rule says of a session, whether it fired or not."""

    rule: str
    fired: bool
    explanation: str  #: one sentence with the figures
    evidence: dict[str, Any] = field(default_factory=dict)  #: figures, times and thresholds


def windows_of(settings: Settings) -> set[float]:
    return {values["window_seconds"] for rule, values in settings.items() if rule in ABUSE and values["enabled"]}


def judge(watched: Watched, settings: Settings) -> list[Check]:
    """Every enabled rule's word on a session, those that fired first."""
    checks = [rule(watched, settings[name]) for name, rule in _RULES.items() if settings[name]["enabled"]]
    return sorted(checks, key=lambda check: not check.fired)


def _gpu_idle(watched: Watched, rule: Mapping[str, float]) -> Check:
    window = watched.windows[rule["window_seconds"]]
    if not watched.held_gpus:
        return _silent("gpu_idle", "It holds no GPU.", window, rule)
    if not window.gpus_seen:
        return _silent("gpu_idle", "Its GPUs tell nothing of their use.", window, rule)
    share = window.gpu / watched.held_gpus
    text = f"GPUs held: {watched.held_gpus:g}; busy {_share(share)} of the last {_length(window)}"
    return _averaged("gpu_idle", share, text, window, rule, held_gpus=watched.held_gpus, busy_gpus=round(window.gpu, 4))


def _cpu_idle(watched: Watched, rule: Mapping[str, float]) -> Check:
    window = watched.windows[rule["window_seconds"]]
    if watched.held_cpu < rule["min_cpu"]:
        text = f"It holds {watched.held_cpu:g} CPUs, fewer than the {rule['min_cpu']:g} that are watched."
        return _silent("cpu_idle", text, window, rule)
    share = window.cpu / watched.held_cpu
    text = f"CPUs held: {watched.held_cpu:g}; used {window.cpu:.3g}, which is {_share(share)}, over the last {_length(window)}"
    return _averaged("cpu_idle", share, text, window, rule, held_cpu=watched.held_cpu, used_cpu=round(window.cpu, 4))


def _memory_unused(watched: Watched, rule: Mapping[str, float]) -> Check:
    window = watched.windows[rule["window_seconds"]]
    if watched.held_mem < rule["min_mem"]:
        text = f"It holds {watched.held_mem:g} MiB, less than the {rule['min_mem']:g} MiB that are watched."
        return _silent("memory_unused", text, window, rule)
    share = window.mem_max / watched.held_mem
    text = (
        f"Memory held: {watched.held_mem:g} MiB; never more than {window.mem_max:.0f} MiB, which is {_share(share)}, "
        f"over the last {_length(window)}"
    )
    figures = {"held_mem": watched.held_mem, "most_mem": round(window.mem_max, 2)}
    return _averaged("memory_unused", share, text, window, rule, **figures)


def _egress(watched: Watched, rule: Mapping[str, float]) -> Check:
    window = watched.windows[rule["window_seconds"]]
    text = f"Sent {window.tx_bytes / _MIB:,.1f} MiB in the last {_length(window)}; the limit is {rule['max_bytes'] / _MIB:,.1f} MiB."
    return _counted("egress", window.tx_bytes > rule["max_bytes"], text, window, rule, sent_bytes=window.tx_bytes)


def _fork_storm(watched: Watched, rule: Mapping[str, float]) -> Check:
    window = watched.windows[rule["window_seconds"]]
    refused = f", and {window.forks_refused} more were refused" if window.forks_refused else ""
    text = (
        f"Up to {window.processes} processes and threads at once in the last {_length(window)}{refused}; the limit is "
        f"{rule['max_processes']:g}."
    )
    fired = window.processes > rule["max_processes"] or window.forks_refused > 0
    figures = {"most_processes": window.processes, "forks_refused": window.forks_refused}
    return _counted("fork_storm", fired, text, window, rule, **figures)


def _oom_loop(watched: Watched, rule: Mapping[str, float]) -> Check:
    window = watched.windows[rule["window_seconds"]]
    text = (
        f"Processes killed for want of memory in the last {_length(window)}: {window.oom_kills}; the limit is "
        f"{rule['max_kills']:g} (it holds {watched.held_mem:g} MiB)."
    )
    return _counted("oom_loop", window.oom_kills >= rule["max_kills"], text, window, rule, oom_kills=window.oom_kills)


def _over_long(watched: Watched, rule: Mapping[str, float]) -> Check:
    text = f"It has run for {span(watched.running_seconds)}; the limit is {span(rule['max_seconds'])}."
    evidence = {"running_seconds": round(watched.running_seconds, 1), **_thresholds(rule)}
    return Check(
        rule="over_long", fired=watched.running_seconds > rule["max_seconds"], explanation=text, evidence=evidence
    )


_RULES: Final[Mapping[str, Callable[[Watched, Mapping[str, float]], Check]]] = {
    "gpu_idle": _gpu_idle,
    "cpu_idle": _cpu_idle,
    "memory_unused": _memory_unused,
    "egress": _egress,
    "fork_storm": _fork_storm,
    "oom_loop": _oom_loop,
    "over_long": _over_long,
}
#: Rules that look at a window of samples.
ABUSE: Final = frozenset(_RULES) - {"over_long"}


def _averaged(name: str, share: float, text: str, window: Window, rule: Mapping[str, float], **figures: Any) -> Check:
    """Fires at or under a share, once the window is full."""
    if window.covered < COVERAGE:
        text = f"Samples tell of {_share(window.covered)} of the last {_length(window)}: too little to judge."
        return _counted(name, False, text, window, rule, **figures)
    text = f"{text}; the limit is {_share(rule['max_share'])}."
    return _counted(name, share <= rule["max_share"], text, window, rule, share=round(share, 4), **figures)


def _counted(name: str, fired: bool, text: str, window: Window, rule: Mapping[str, float], **figures: Any) -> Check:
    times = {"since": window.since, "until": window.until, "covered_share": round(window.covered, 3)}
    return Check(rule=name, fired=fired, explanation=text, evidence={**figures, **times, **_thresholds(rule)})


def _silent(name: str, text: str, window: Window, rule: Mapping[str, float]) -> Check:
    return _counted(name, False, text, window, rule)


def _thresholds(rule: Mapping[str, float]) -> dict[str, Any]:
    return {"thresholds": {name: value for name, value in rule.items() if name != "enabled"}}


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def _length(window: Window) -> str:
    return span((window.until - window.since).total_seconds())
