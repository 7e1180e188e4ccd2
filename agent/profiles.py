"""What each profile gives a container, and nothing beside it: the engine is told this, and never what somebody asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent import seccomp
from domain.isolation import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    #: What root inside can have of root's rights; without a way to become root, nothing.
    capabilities: tuple[str, ...]
    no_new_privileges: bool  #: setuid programs give nobody anything
    read_only: bool  #: the image; files of the session, /tmp and /dev/shm are writable in any case

    def host_config(self) -> dict[str, Any]:
        """As arguments of the engine's client. Both profiles have the same filter of system calls, and no devices."""
        options = [f"seccomp={seccomp.profile()}"]
        if self.no_new_privileges:
            options.insert(0, "no-new-privileges:true")
        return {
            "cap_drop": ["ALL"],
            "cap_add": list(self.capabilities),
            "security_opt": options,
            "read_only": self.read_only,
        }

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether a container with this HostConfig is confined like that."""
        options: Sequence[str] = config.get("SecurityOpt") or []
        given = {name.removeprefix("CAP_") for name in config.get("CapAdd") or []}
        return (
            not config.get("Privileged")
            and "ALL" in (config.get("CapDrop") or [])
            and given <= set(self.capabilities)
            and any(option.startswith("seccomp=") and option != "seccomp=unconfined" for option in options)
            and (not self.no_new_privileges or any(option.startswith("no-new-privileges") for option in options))
            and (not self.read_only or bool(config.get("ReadonlyRootfs")))
            and not config.get("Devices")
        )


HARDENED: Final = Confinement(capabilities=(), no_new_privileges=True, read_only=True)
#: sudo and su change users; dpkg gives files owners and modes, and writes where it has no right by them. Root without
#: SYS_ADMIN, NET_ADMIN, NET_RAW, SYS_PTRACE, MKNOD, SYS_MODULE, DAC_READ_SEARCH and all the rest has no way to the host.
STANDARD: Final = Confinement(
    capabilities=("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    no_new_privileges=False,
    read_only=False,
)


def confinement(profile: str) -> Confinement:
    """Of a profile that this agent does not know: the strictest."""
    return STANDARD if profile == Profile.STANDARD else HARDENED
