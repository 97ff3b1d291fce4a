"""What a Mac is, by the system's own tools, and texts without what is known to be private.

Fields are taken one by one: what the tools print besides has serial numbers of the machine and of
its displays, names of people and of networks.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_SYSCTLS = {
    "chip": "machdep.cpu.brand_string",
    "model": "hw.model",
    "memory_bytes": "hw.memsize",
    "performance_cores": "hw.perflevel0.physicalcpu",
    "efficiency_cores": "hw.perflevel1.physicalcpu",
    "virtual_machine": "kern.hv_vmm_present",
    "translated": "sysctl.proc_translated",
}


def output(*command: str) -> str:
    """Return what a command prints, stripped; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def first_line(*command: str) -> str | None:
    return next(iter(output(*command).splitlines()), None)


def displays() -> dict[str, Any]:
    """Return the GPU of system_profiler and how many displays it drives: no field of theirs."""
    try:
        found = json.loads(output("system_profiler", "SPDisplaysDataType", "-json"))
        gpu = found["SPDisplaysDataType"][0]
    except (ValueError, LookupError, TypeError):
        return {}
    family = str(gpu.get("spdisplays_mtlgpufamilysupport", ""))
    return {
        "gpu": gpu.get("sppci_model"),
        "gpu_cores": int(gpu["sppci_cores"]) if str(gpu.get("sppci_cores")).isdigit() else None,
        "metal_family": family.removeprefix("spdisplays_") or None,
        "displays": len(gpu.get("spdisplays_ndrvs", [])),
    }


def power() -> dict[str, Any]:
    source = re.search(r"'(.+?)'", first_line("pmset", "-g", "batt") or "")
    low = re.search(r"^\s*lowpowermode\s+(\d)", output("pmset", "-g"), re.MULTILINE)
    return {
        "power_source": source[1] if source else None,
        "low_power_mode": low[1] == "1" if low else None,
    }


def machine() -> dict[str, Any]:
    """Return what the report says of the machine; None where a tool does not tell."""
    found: dict[str, Any] = {"system": platform.system(), "architecture": platform.machine()}
    for name, key in _SYSCTLS.items():
        text = output("sysctl", "-n", key)
        found[name] = int(text) if text.isdigit() else text or None
    for name in ("virtual_machine", "translated"):
        found[name] = None if found[name] is None else found[name] == 1
    return {
        **found,
        "macos": output("sw_vers", "-productVersion") or None,
        "macos_build": output("sw_vers", "-buildVersion") or None,
        "sdk": output("xcrun", "--sdk", "macosx", "--show-sdk-version") or None,
        "xcode": first_line("xcodebuild", "-version"),
        "compiler": first_line("cc", "--version"),
        "metal_compiler": first_line("xcrun", "metal", "--version"),
        **displays(),
        **power(),
    }


# Names of users and machines that are no person's, and are part of ordinary texts.
ORDINARY = ("", "root", "localhost", "runner", "mac", "metal", "python", "test")


# Hosts that say nothing of the person: a build downloads from them, messages point to them.
PUBLIC_HOSTS = (
    *("pypi.org", "pythonhosted.org", "python.org", "github.com", "githubusercontent.com"),
    *("apple.com", "huggingface.co", "pytest.org", "readthedocs.io", "localhost"),
)
# The edges of a word. An underscore ends one: /opt/jdoe_env names jdoe.
BEGIN, END = r"(?<![^\W_])", r"(?![^\W_])"
_NAME = r"[^/\s'\":]"
# A blank inside a name, or before what certainly is no more of the path.
_BLANK = r"[ \t](?!-\w|[/~]|CHECKOUT)"
_NAME_WITH_BLANKS = rf"(?:{_NAME}|{_BLANK}|'(?=s\b))+"
# What follows a folder: names with blanks as long as a slash comes, then one without.
_BELOW = rf"(?:/(?:{_NAME_WITH_BLANKS}/)*[^/\s'\":,;)\]>]*)?"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"


def _url(found: re.Match[str]) -> str:
    """Return a URL of a public host without the user's part, of any other without anything."""
    scheme, _, host, rest = found.groups()
    return f"{scheme}://{host}{rest}" if _is_public(host) else f"{scheme}://HOST"


def _host(found: re.Match[str]) -> str:
    return found[0] if _is_public(found[2]) else f"{found[1]}HOST"


def _is_public(host: str) -> bool:
    name = host.partition(":")[0].casefold()
    return any(name == one or name.endswith(f".{one}") for one in PUBLIC_HOSTS)


class Scrubber:
    """Takes what is private out of texts: given words and folders, and what looks like it.

    A text has to be whole: half of a name is not found. A clean text stays as it is.
    """

    PATTERNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
        (
            re.compile(
                r"(?i)(?<![a-z+])([a-z+]+)://([^/\s'\"@]*@)?([^/\s'\"<>(),;\]@]+)([^\s'\"<>]*)"
            ),
            _url,
        ),
        (re.compile(r"(\bhost=['\"]?|\brepository located at )([\w.-]+)"), _host),
        # Between quotes to the closing one, whatever is in the names.
        (re.compile(r"(['\"])~/[^\n]*?\1(?!\w)"), r"\1~/PATH\1"),
        (re.compile(r"(['\"])/Volumes/[^\n]*?\1(?!\w)"), r"\1/Volumes/VOLUME\1"),
        (re.compile(r"(['\"])/(Users|home)/[^\n]*?\1(?!\w)"), r"\1/\2/USER\1"),
        (re.compile(rf"~(?=/{_NAME})(?!/PATH{END}){_BELOW}"), "~/PATH"),
        (re.compile(rf"/Volumes/(?!VOLUME{END}){_NAME_WITH_BLANKS}{_BELOW}"), "/Volumes/VOLUME"),
        (re.compile(rf"/(Users|home)/{_NAME}+{_BELOW}"), r"/\1/USER"),
        (re.compile(r"(/private)?/var/folders/[^/\s]+/[^/\s]+"), "/TEMP"),
        (re.compile(r"pytest-of-[^/\s'\":]+"), "pytest-of-USER"),
        (re.compile(rf"{BEGIN}[\w.+-]{{1,99}}@[\w-]+\.[\w.-]+{END}"), "ADDRESS"),
        (re.compile(rf"{BEGIN}(?:[0-9a-fA-F]{{2}}:){{5}}[0-9a-fA-F]{{2}}{END}"), "ADDRESS"),
        (
            re.compile(
                rf"(?<![^\W_])(?<!\.)(?!127\.|0\.0\.0\.0)(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?\d){END}"
            ),
            "ADDRESS",
        ),
        (
            re.compile(
                rf"{BEGIN}[0-9A-Fa-f]{{8}}-(?:[0-9A-Fa-f]{{4}}-){{3}}[0-9A-Fa-f]{{12}}{END}"
            ),
            "UUID",
        ),
        (
            re.compile(rf"(?i){BEGIN}serial(?:[ _-]?(?:number|no))?{END}(\W{{1,4}})\w{{6,}}"),
            r"serial\1NUMBER",
        ),
    )

    def __init__(self, folders: dict[str, str], words: dict[str, str]) -> None:
        # The longest first: a checkout is inside a home folder.
        found = sorted(folders.items(), key=lambda item: -len(item[0]))
        self.folders = [
            (re.compile(rf"{re.escape(name.rstrip('/'))}(?=$|[/\s'\":,;)\]])"), to)
            for name, to in found
            if len(name.rstrip("/")) > 1
        ]
        self.words = [
            (re.compile(rf"{BEGIN}{re.escape(word)}{END}", re.IGNORECASE), to)
            for word, to in sorted(words.items(), key=lambda item: -len(item[0]))
            if len(word) > 1
        ]

    @classmethod
    def of_this_machine(cls, root: Path) -> Scrubber:
        """Return one for the user, the machine's names, the home folder and a checkout."""
        folders = {str(Path.home()): "~", str(Path.home().resolve()): "~"}
        folders |= {str(root): "CHECKOUT", str(root.resolve()): "CHECKOUT"}
        names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
        with contextlib.suppress(OSError, KeyError, ImportError):
            names.add(getpass.getuser())
        hosts = {socket.gethostname(), socket.gethostname().split(".")[0], platform.node()}
        hosts |= {output("scutil", "--get", key) for key in ("ComputerName", "LocalHostName")}
        names.add(output("id", "-F"))
        expert = output("ioreg", "-d2", "-c", "IOPlatformExpertDevice")
        serials = re.findall(r'"IOPlatformSerialNumber" = "(\w+)"', expert)
        words = dict.fromkeys(names, "USER") | dict.fromkeys(hosts, "HOST")
        words |= dict.fromkeys(serials, "SERIAL")
        return cls(folders, {w: to for w, to in words.items() if w.casefold() not in ORDINARY})

    def text(self, value: str) -> str:
        for folder, to in self.folders:
            value = folder.sub(to, value)
        for pattern, left in self.PATTERNS:
            value = pattern.sub(left, value)
        for pattern, to in self.words:
            value = pattern.sub(to, value)
        return value

    def everywhere(self, value: Any) -> Any:
        """Return data with every text in it clean; keys are the report's own and stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.everywhere(one) for key, one in value.items()}
        if isinstance(value, Iterable):
            return [self.everywhere(one) for one in value]
        return value
