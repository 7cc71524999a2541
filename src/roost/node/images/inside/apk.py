#!/usr/bin/python3
"""apk for an image of Debian's packages: what documents and Dockerfiles say for Alpine, done by apt.

`build.py` puts it into built images as /usr/sbin/apk. Names are Alpine's or Debian's (`debian_names`). An option has
the effect that it has in Alpine, or is refused with the reason: none is taken and then forgotten. Standard library
only, and Python 3.9: it runs inside the image.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LISTS = Path("/var/lib/apt/lists")
MAX_AGE = 240  # minutes that package lists are good for, as in Alpine
VIRTUAL = "apk-virtual-"  # packages of our own making, one for each `--virtual NAME`
NEWER = {"update", "upgrade", "latest"}  # what asks for the newest version of what is here

USAGE = """\
apk, for Debian's packages: the work is done by apt. Names are Alpine's or Debian's.

usage: apk [OPTIONS...] COMMAND [ARGUMENTS...]

  add [-t NAME] [-s] PACKAGE...   install; with -t under one name that `apk del` takes
  del [-r] PACKAGE...             remove, with what nothing else needs
  update | upgrade [-a]           fetch the package lists | install newer versions
  info [-e|-L|-R|-r|-d|-s|-w|-P|-a|-v] [PACKAGE...], info -W FILE...
  search [-e|-d|-v] PATTERN... | list [-I|-u] [PATTERN...] | policy PACKAGE... | fix | cache clean

  -q  say less             -U, --update   fetch the lists first    --no-cache    fetch them, and keep none
  -s, --simulate           -i, --interactive                       --no-network  -v  --purge  -V  -h
"""

# Alpine's name -> Debian's, where no rule leads from one to the other. An empty list: nothing is missing here.
NAMES: dict[str, list[str]] = {
    "alpine-sdk": ["build-essential", "git"],
    "aws-cli": ["awscli"],
    "bind-tools": ["bind9-dnsutils"],
    "build-base": ["build-essential"],
    "bzip2-dev": ["libbz2-dev"],
    "ca-certificates-bundle": ["ca-certificates"],
    "cairo-dev": ["libcairo2-dev"],
    "curl-dev": ["libcurl4-openssl-dev"],
    "docker": ["docker.io"],
    "docker-cli": ["docker.io"],
    "envsubst": ["gettext-base"],
    "expat-dev": ["libexpat1-dev"],
    "font-dejavu": ["fonts-dejavu"],
    "font-liberation": ["fonts-liberation"],
    "font-noto": ["fonts-noto-core"],
    "font-noto-cjk": ["fonts-noto-cjk"],
    "font-noto-emoji": ["fonts-noto-color-emoji"],
    "freetype": ["libfreetype6"],
    "freetype-dev": ["libfreetype-dev"],
    "gcompat": [],
    "giflib-dev": ["libgif-dev"],
    "github-cli": ["gh"],
    "go": ["golang-go"],
    "harfbuzz": ["libharfbuzz0b"],
    "iputils": ["iputils-ping"],
    "jpeg-dev": ["libjpeg-dev"],
    "lcms2-dev": ["liblcms2-dev"],
    "libc-dev": ["libc6-dev"],
    "libc6-compat": [],
    "libcap": ["libcap2-bin"],
    "libffi": [],
    "libgcc": ["libgcc-s1"],
    "libgomp": ["libgomp1"],
    "libjpeg-turbo": ["libjpeg62-turbo"],
    "libjpeg-turbo-dev": ["libjpeg-dev"],
    "libstdc++": ["libstdc++6"],
    "libxslt-dev": ["libxslt1-dev"],
    "linux-headers": ["linux-libc-dev"],
    "linux-pam-dev": ["libpam0g-dev"],
    "mariadb-dev": ["libmariadb-dev"],
    "mongodb-tools": ["mongo-tools"],
    "musl-dev": ["libc6-dev"],
    "mysql-client": ["default-mysql-client"],
    "ncurses": ["ncurses-bin"],
    "ncurses-terminfo-base": ["ncurses-base"],
    "ninja": ["ninja-build"],
    "nss": ["libnss3"],
    "openssh": ["openssh-client", "openssh-server"],
    "openssh-client-default": ["openssh-client"],
    "openssh-keygen": ["openssh-client"],
    "openssl-dev": ["libssl-dev"],
    "p7zip": ["p7zip-full"],
    "pango-dev": ["libpango1.0-dev"],
    "pcre-dev": ["libpcre3-dev"],
    "perl-utils": ["perl"],
    "pkgconfig": ["pkg-config"],
    "postgresql-dev": ["libpq-dev"],
    "protobuf": ["protobuf-compiler"],
    "py3-beautifulsoup4": ["python3-bs4"],
    "py3-mysqlclient": ["python3-mysqldb"],
    "py3-pillow": ["python3-pil"],
    "py3-pyzmq": ["python3-zmq"],
    "py3-scikit-learn": ["python3-sklearn"],
    "python3-tkinter": ["python3-tk"],
    "redis": ["redis-server"],
    "ruby-bundler": ["bundler"],
    "rust": ["rustc"],
    "samurai": ["ninja-build"],
    "shadow": ["passwd"],
    "sqlite": ["sqlite3"],
    "sqlite-dev": ["libsqlite3-dev"],
    "sqlite-libs": ["libsqlite3-0"],
    "ttf-dejavu": ["fonts-dejavu"],
    "ttf-freefont": ["fonts-freefont-ttf"],
    "ttf-liberation": ["fonts-liberation"],
    "util-linux-dev": ["libblkid-dev", "libmount-dev", "uuid-dev"],
    "vips-dev": ["libvips-dev"],
    "xz": ["xz-utils"],
    "xz-dev": ["liblzma-dev"],
    "yaml-dev": ["libyaml-dev"],
    "zlib": ["zlib1g"],
    "zlib-dev": ["zlib1g-dev"],
}

# What a name may be in Debian besides itself: the first that there is.
RULES: list[tuple[str, list[str]]] = [
    (r"py3-(.+)", [r"python3-\1"]),
    (r"openjdk(\d+)", [r"openjdk-\1-jdk"]),
    (r"openjdk(\d+)-(.+)", [r"openjdk-\1-\2"]),
    (r"postgresql(\d+)", [r"postgresql-\1"]),
    (r"postgresql(\d+)-client", [r"postgresql-client-\1"]),
    (r"php(\d)(\d)", [r"php\1.\2-cli"]),
    (r"php(\d)(\d)-(.+)", [r"php\1.\2-\3"]),
    (r"perl-(.+)", [r"lib\1-perl"]),
    (r"(?:font|ttf)-(.+)", [r"fonts-\1"]),
    (r"lib(.+)-dev", [r"lib\g<1>1-dev", r"lib\g<1>2-dev", r"lib\g<1>3-dev"]),
    (r"(.+)-dev", [r"lib\1-dev", r"lib\g<1>1-dev", r"lib\g<1>2-dev", r"lib\g<1>3-dev"]),
]

# Other programs in Debian, or none: what brings the one that Alpine means.
ELSEWHERE = {
    "nodejs-current": "`npm install -g n && n latest` brings the newest Node",
    "pnpm": "`npm install -g pnpm` brings it",
    "su-exec": "Debian has gosu instead: `apk add gosu`",
    "yarn": "`npm install -g yarn` brings it",
    "yq": "Debian's yq is another program; `apt-get install yq` brings that one",
}


@dataclass(frozen=True)
class Flag:
    meaning: str
    valued: bool


# command (none: all of them) -> option -> what it means there
FLAGS: dict[str, dict[str, Flag]] = {}


def _flags(commands: str, *lines: str) -> None:
    """Lines are `OPTION...:MEANING`, with a `=` at the end where a value follows."""
    for line in lines:
        words, _, meaning = line.partition(":")
        for command in commands.split() or [""]:
            known = Flag(meaning.rstrip("="), meaning.endswith("="))
            FLAGS.setdefault(command, {}).update(dict.fromkeys(words.split(), known))


_flags(
    "",
    "-q --quiet:quiet", "-v --verbose:verbose", "-i --interactive:interactive", "--no-interactive:batch",
    "-U --update --update-cache:update", "--no-cache:no_cache", "--no-network:no_network", "--purge:purge",
    "--progress:progress", "--no-progress:no_progress", "-f --force --force-overwrite:overwrite",
    "--force-refresh:refresh", "--allow-untrusted:untrusted", "--no-check-certificate:unchecked",
    "--no-logfile:no_log", "--wait:wait=", "--timeout:timeout=", "--cache-max-age:max_age=", "--cache-dir:cache_dir=",
    "-h --help:help", "-V --version:version", "--print-arch:print_arch",
    # what they allow is never forbidden here
    "--force-old-apk --force-non-repository --force-binary-stdout --force-missing-repositories:allowed",
    "-p --root:root=", "-X --repository:repository=", "--repositories-file:repositories=", "--keys-dir:keys=",
    "--arch:arch=", "--progress-fd:progress_fd=", "--force-broken-world:broken",
)  # fmt: skip
_flags("add", "-t --virtual:virtual=", "-u --upgrade:upgrade", "--initdb:initdb", "--no-scripts:no_scripts")
_flags("add", "--overlay-from-stdin:overlay")
_flags("add del fix upgrade", "-s --simulate:simulate", "--clean-protected:protected")
_flags("add fix upgrade", "-l --latest:latest")
_flags("del", "-r --rdepends:rdepends")
_flags("upgrade", "-a --available:available", "--no-self-upgrade:allowed", "--self-upgrade-only:only_apk")
_flags("info", "-e --installed:installed", "-L --contents:contents", "-P --provides:provides", "-r --rdepends:rdepends")
_flags("info", "-R --depends:depends", "-s --size:size", "-w --webpage:webpage", "-W --who-owns:owner", "-a --all:all")
_flags("info", "-d --description:description", "-t --triggers:triggers", "-i --install-if:install_if")
_flags("info", "--replaces:replaces", "--license:license")
_flags("search", "-e -x --exact:exact", "-d --description:description", "-a --all:all", "-o --origin:origin")
_flags("search", "-r --rdepends:rdepends", "--has-origin:origin")
_flags("list", "-I --installed:installed", "-u --upgradable:upgradable", "-a --available:available")

REFUSED = {
    "root": "a package set of another directory is Alpine's own",
    "repository": "its packages are Alpine's, for another C library; add a Debian source in /etc/apt/sources.list.d",
    "repositories": "Debian's sources are in /etc/apt/sources.list.d",
    "keys": "Debian's keys are in /usr/share/keyrings and /etc/apt/keyrings",
    "arch": "only packages of this machine's architecture can be installed",
    "progress_fd": "apt tells its progress in another form (APT::Status-Fd)",
    "broken": "apt installs no package whose dependencies are missing",
    "initdb": "it makes a package set of its own, which is Alpine's",
    "no_scripts": "Debian's packages need the scripts that set them up",
    "overlay": "it is Alpine's way of making file systems",
    "protected": "apt keeps changed configuration files",
    "only_apk": "apk is not a package here; it came with the image",
    "triggers": "Debian's triggers are named otherwise; see dpkg-query --control-show PACKAGE triggers",
    "install_if": "Debian's packages have no such condition",
    "replaces": "see apt-cache show PACKAGE",
    "license": "see /usr/share/doc/PACKAGE/copyright",
    "origin": "see apt-cache showsrc PACKAGE",
}


class Failed(Exception):
    """The text is for the user."""


@dataclass
class Options:
    command: str = ""
    words: list[str] = field(default_factory=list[str])
    given: set[str] = field(default_factory=set[str])
    values: dict[str, str] = field(default_factory=dict[str, str])

    def __contains__(self, meaning: str) -> bool:
        return meaning in self.given

    def number(self, meaning: str, default: int | None = None) -> int | None:
        text = self.values.get(meaning)
        if text is None:
            return default
        if not text.isdecimal():
            raise Failed(f"--{meaning.replace('max_age', 'cache-max-age')}: {text!r} is not a whole number")
        return int(text)


def parse(arguments: Sequence[str]) -> Options:
    """Raises Failed. Options may stand anywhere, as in Alpine."""
    words = [word for word in arguments if not word.startswith("-")]
    options, rest = Options(next((word for word in words if word in ACTIONS), "")), list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            options.words += rest
            break
        if not word.startswith("-") or word == "-":
            options.words.append(word)
        for flag, known, value in _split(options.command, word, rest):
            options.given.add(known.meaning)
            if value is not None:
                options.values[known.meaning] = value
            if known.meaning in REFUSED and (known.meaning, value) != ("arch", architecture()):
                raise Failed(f"{flag}: {REFUSED[known.meaning]}")
    if options.command:
        options.words.remove(options.command)
    return options


def _split(command: str, word: str, rest: list[str]) -> Iterator[tuple[str, Flag, str | None]]:
    """The options of one word; `rest` gives the value that stands in the next."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        flags = [(name, value if equals else None)]
    else:
        flags = [(f"-{letter}", None) for letter in word[1:]] if word.startswith("-") else []
    for at, (flag, value) in enumerate(flags):
        known = _known(command, flag)
        if not known.valued:
            if value is not None:
                raise Failed(f"{flag} takes no value")
            yield flag, known, None
            continue
        if value is None and at + 1 < len(flags):  # -tNAME
            yield flag, known, word[at + 2 :]
            return
        if value is None and not rest:
            raise Failed(f"{flag} needs a value")
        yield flag, known, rest.pop(0) if value is None else value


def _known(command: str, flag: str) -> Flag:
    for table in (FLAGS.get(command, {}), FLAGS[""]):
        if flag in table:
            return table[flag]
    if any(flag in table for table in FLAGS.values()) and command:
        raise Failed(f"{flag} is no option of apk {command}")
    raise Failed(f"unrecognized option '{flag}'; see apk --help")


def architecture() -> str:
    """As Alpine calls it."""
    machine = os.uname().machine
    return {"armv7l": "armv7", "i686": "x86"}.get(machine, machine)


# ---- names


def debian_names(name: str) -> list[list[str]]:
    """What an Alpine name may mean, the best first; each is a list of packages. Raises Failed for a version."""
    if found := re.search(r"[<>=~@!]", name):
        raise Failed(
            f"{name}: versions and repositories that are named by `{found[0]}` are Alpine's; this image has Debian's, "
            "of which there is one at a time: leave it out"
        )
    if name in NAMES:
        return [NAMES[name]]
    if re.fullmatch(r".+-(?:bash|zsh|fish)-completion", name):
        return [[name], []]  # in Debian they come with the package itself
    found = [[name]]
    for pattern, templates in RULES:
        if match := re.fullmatch(pattern, name):
            found += [[match.expand(template).lower().replace("_", "-")] for template in templates]
    return found


def resolve(names: Iterable[str], there: dict[str, str]) -> list[str]:
    """The Debian packages that are meant, of those that there are. Raises Failed, naming all that are missing."""
    packages: list[str] = []
    missing: list[str] = []
    for name in names:
        chosen = next((one for one in debian_names(name) if all(part in there for part in one)), None)
        if chosen is None or (name in ELSEWHERE and name not in NAMES):
            missing.append(name)
        else:
            packages += [one for one in chosen if one not in packages]
    if missing:
        raise Failed("unable to select packages:\n" + "\n".join(map(_missing, missing)))
    return packages


def _missing(name: str) -> str:
    tried = [one for group in debian_names(name) for one in group if one != name]
    told = f" (nor {', '.join(tried)})" if tried else ""
    text = f"  {name} (no such package):\n    required by: world[{name}]\n    Debian has no {name}{told}"
    return f"{text}; {ELSEWHERE[name]}" if name in ELSEWHERE else f"{text}; `apk search {name}` looks for more"


def virtual_package(name: str) -> str:
    """The package that stands for `--virtual NAME`. Raises Failed."""
    if not re.fullmatch(r"[a-z0-9.][a-z0-9+.-]*", name):
        raise Failed(f"--virtual: {name!r} is no name here: small letters, digits, '.', '+' and '-'")
    return VIRTUAL + name


# ---- apt


class Apt:
    """apt and dpkg with the options that hold for all of a call; enter it to have the package lists of --no-cache."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._own_lists: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Apt:
        if "no_cache" in self.options and "no_network" not in self.options:
            self._own_lists = tempfile.TemporaryDirectory(prefix="apk-")
        return self

    def __exit__(self, *_: object) -> None:
        if self._own_lists:
            self._own_lists.cleanup()

    def settings(self) -> list[str]:
        # what is merely recommended by something is not installed here, so it keeps nothing either
        given, chosen = self.options, ["APT::AutoRemove::RecommendsImportant=0", "APT::AutoRemove::SuggestsImportant=0"]
        if self._own_lists:
            chosen += [f"Dir::State::Lists={self._own_lists.name}", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
        if "refresh" in given:
            chosen.append("Acquire::http::No-Cache=true")
        if "unchecked" in given:
            chosen.append("Acquire::https::Verify-Peer=false")
        if "overwrite" in given:
            chosen.append("Dpkg::Options::=--force-overwrite")
        if "no_log" in given:
            chosen += ["Dir::Log::History=/dev/null", "Dir::Log::Terminal=/dev/null"]
        if "cache_dir" in given:
            directory = Path(given.values["cache_dir"])
            (directory / "partial").mkdir(parents=True, exist_ok=True)
            chosen += [f"Dir::Cache::Archives={directory.resolve()}", "APT::Keep-Downloaded-Packages=true"]
        if (seconds := given.number("timeout")) is not None:
            chosen += [f"Acquire::{kind}::Timeout={seconds}" for kind in ("http", "https")]
        if (seconds := given.number("wait")) is not None:
            chosen.append(f"DPkg::Lock::Timeout={seconds}")
        return [word for one in chosen for word in ("-o", one)]

    def run(self, *arguments: str) -> None:
        """apt-get. Raises Failed."""
        given = self.options
        words = ["apt-get", *self.settings()]
        words += [] if "interactive" in given and "batch" not in given else ["--yes"]
        words += ["-qq"] if "quiet" in given else []
        words += ["--simulate"] if "simulate" in given else []
        words += ["--no-download"] if "no_network" in given else []
        words += ["--allow-unauthenticated"] if "untrusted" in given else []
        words += ["--show-progress"] if "progress" in given and "no_progress" not in given else []
        environment = dict(os.environ)
        if "interactive" not in given:
            environment["DEBIAN_FRONTEND"] = "noninteractive"
        sys.stdout.flush()
        silent = subprocess.DEVNULL if "quiet" in given else None
        done = subprocess.run([*words, *arguments], env=environment, stdout=silent, check=False)
        if done.returncode:
            raise Failed(f"apt-get {arguments[0]} ended with status {done.returncode}")

    def update(self) -> None:
        if "no_network" in self.options:
            raise Failed("apk update needs the network, which --no-network forbids")
        simulating = "simulate" in self.options
        self.options.given.discard("simulate")  # it changes nothing that is installed
        self.run("update")
        if simulating:
            self.options.given.add("simulate")

    def update_if_old(self) -> None:
        """What every command does that reads the lists: they are fetched if asked for, missing or too old."""
        if "no_network" in self.options:
            return
        age = self.options.number("max_age", MAX_AGE) or 0
        if "update" in self.options or self._own_lists or _lists_age() > age * 60:
            self.update()

    def there(self, names: Iterable[str]) -> dict[str, str]:
        """Of these packages those that can be installed, or are, with that version."""
        asked = sorted(set(names))
        if not asked:
            return {}
        text = output(["apt-cache", *self.settings(), "policy", *asked])
        found: dict[str, str] = {}
        for block in re.split(r"^(?=\S)", text, flags=re.M):
            name, _, rest = block.partition(":\n")
            if (version := re.search(r"^  Candidate: (.+)$", rest, re.M)) and version[1] != "(none)":
                found[name.partition(":")[0]] = version[1]
        return found


def _lists_age() -> float:
    """Seconds; endless where there are none."""
    times = [path.stat().st_mtime for path in LISTS.glob("*Release")] if LISTS.is_dir() else []
    fetched = max([*times, _changed(LISTS / "partial")]) if times else 0.0
    return time.time() - fetched if times else float("inf")


def _changed(path: Path) -> float:
    """When apt last fetched: a Release file keeps the archive's own time."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def output(words: list[str]) -> str:
    """What a program that only reads prints; nothing where it finds nothing."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout


def installed() -> dict[str, str]:
    text = output(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n"])
    rows = (line.split("\t") for line in text.splitlines())
    return {row[1]: row[2] for row in rows if row[0].startswith("ii")}


def sum_up(options: Options) -> None:
    """As in Alpine: what there is in all."""
    if "quiet" in options:
        return
    sizes = output(["dpkg-query", "-W", "-f", "${Installed-Size}\n"]).split()
    print(f"OK: {sum(map(int, sizes)) // 1024} MiB in {len(sizes)} packages")


# ---- commands


def add(apt: Apt) -> None:
    options = apt.options
    if not options.words and "virtual" not in options:
        return sum_up(options)
    packages = _chosen(apt)
    if "virtual" in options:
        _add_virtual(apt, options.values["virtual"], packages)
    elif all(one in installed() for one in packages) and not NEWER & options.given:
        _ask_for(apt, packages)
    else:
        apt.run("install", *packages)
    if "upgrade" in options:
        apt.run("upgrade", "--with-new-pkgs")
    return sum_up(options)


def _chosen(apt: Apt) -> list[str]:
    """Lists are needed for what is not here yet, or for newer versions."""
    names, here = apt.options.words, installed()
    if not NEWER & apt.options.given and all(_is_installed(name, here) for name in names):
        return resolve(names, here)
    apt.update_if_old()
    return resolve(names, apt.there(one for name in names for group in debian_names(name) for one in group))


def _ask_for(apt: Apt, packages: list[str]) -> None:
    """What is here already stays, also when what it came with goes."""
    if packages and "simulate" not in apt.options:
        subprocess.run(["apt-mark", "manual", *packages], stdout=subprocess.DEVNULL, check=True)


def _add_virtual(apt: Apt, name: str, packages: list[str]) -> None:
    """A package without files that needs the others: dpkg itself then knows what goes with it."""
    package = virtual_package(name)
    with tempfile.TemporaryDirectory(prefix="apk-") as place:
        Path(place).chmod(0o755)  # apt reads it as another user where it has one
        control = Path(place, "tree/DEBIAN/control")
        control.parent.mkdir(parents=True, mode=0o755)
        needs = f"Depends: {', '.join(packages)}\n" if packages else ""
        control.write_text(
            f"Package: {package}\nVersion: {time.strftime('%Y%m%d.%H%M%S')}\nArchitecture: all\n"
            f"Maintainer: apk <root@localhost>\n{needs}Description: what `apk add --virtual {name}` asked for\n"
        )
        made = f"{place}/{package}.deb"
        subprocess.run(["dpkg-deb", "--build", f"{place}/tree", made], stdout=subprocess.DEVNULL, check=True)
        apt.run("install", made)


def remove(apt: Apt) -> None:
    """What something else needs stays, as in Alpine: the name is no longer asked for."""
    options, have = apt.options, installed()
    chosen: list[str] = []
    for name in options.words:
        meant = [[VIRTUAL + name], *debian_names(name)]
        found = next((group for group in meant if group and all(one in have for one in group)), None)
        if found is None:
            raise Failed(f"No such package: {name} (it is not installed)")
        chosen += found
    purge = ["--purge"] if "purge" in options else []
    if "rdepends" in options:
        if chosen:
            apt.run("remove", "--auto-remove", *purge, *chosen)
        return sum_up(options)
    _release(apt, chosen, purge)
    return sum_up(options)


def _release(apt: Apt, packages: list[str], purge: list[str]) -> None:
    if not packages:
        return
    virtual = [one for one in packages if one.startswith(VIRTUAL)]
    if virtual:  # nothing needs it
        apt.run("remove", "--auto-remove", *purge, *virtual)
    others = [one for one in packages if one not in virtual]
    if not others:
        return
    if "simulate" in apt.options:
        print(f"no longer asked for: {' '.join(others)}; what nothing else needs would go")
        return
    subprocess.run(["apt-mark", "auto", *others], stdout=subprocess.DEVNULL, check=True)
    apt.run("autoremove", *purge)
    left = [one for one in others if one in installed()]
    if left and "quiet" not in apt.options:
        print("World updated, but the following packages are not removed due to:")
        for one in left:
            print(f"  {one}: {' '.join(_needed_by(one)) or 'it belongs to the system'}")


def _needed_by(package: str) -> list[str]:
    text = output(["apt-cache", "rdepends", "--installed", "--no-recommends", "--no-suggests", package])
    lines = [line.strip().lstrip("|") for line in text.splitlines()[2:]]
    return list(dict.fromkeys(line for line in lines if line))


def update(apt: Apt) -> None:
    apt.update()
    sum_up(apt.options)


def upgrade(apt: Apt) -> None:
    apt.update_if_old()
    apt.run("dist-upgrade" if "available" in apt.options else "upgrade", "--with-new-pkgs", *_only(apt.options.words))
    sum_up(apt.options)


def _only(words: list[str]) -> list[str]:
    if words:
        raise Failed("apk upgrade PACKAGE is not known here; `apk add PACKAGE` installs its newest version")
    return []


def fix(apt: Apt) -> None:
    apt.update_if_old()
    apt.run("install", "--fix-broken", "--reinstall", *_meant(apt.options.words))
    sum_up(apt.options)


def cache(apt: Apt) -> None:
    if apt.options.words != ["clean"]:
        raise Failed("of `apk cache` there is only `clean` here: apt keeps no packages that it has installed")
    apt.run("clean")


def policy(apt: Apt) -> None:
    apt.update_if_old()
    names = [one for name in apt.options.words for group in debian_names(name) for one in group]
    sys.stdout.write(output(["apt-cache", *apt.settings(), "policy", *resolve(apt.options.words, apt.there(names))]))


def version(apt: Apt) -> None:
    apt.update_if_old()
    sys.stdout.write(output(["apt", *apt.settings(), "list", "--upgradable"]))


def search(apt: Apt) -> None:
    apt.update_if_old()
    options = apt.options
    names = output(["apt-cache", *apt.settings(), "pkgnames"]).split()
    found = sorted({name for name in names for word in options.words or ["*"] if _matches(name, word, options)})
    if "description" in options and options.words:
        text = output(["apt-cache", *apt.settings(), "search", *options.words])
        found = sorted({*found, *(line.partition(" - ")[0] for line in text.splitlines())})
    for name, known in _shown(apt, found).items():
        about = f" - {known['summary']}" if "verbose" in options or "description" in options else ""
        print(name if "quiet" in options else f"{name}-{known['version']}{about}")


def _matches(name: str, word: str, options: Options) -> bool:
    for meant in [word, *(one for group in debian_names(word)[:4] for one in group)]:
        if "exact" in options or any(mark in meant for mark in "*?["):
            if fnmatch.fnmatchcase(name, meant):
                return True
        elif meant in name:
            return True
    return False


def _shown(apt: Apt, names: list[str]) -> dict[str, dict[str, str]]:
    """Version and summary of packages, in the order of `names`."""
    found: dict[str, dict[str, str]] = {}
    for at in range(0, len(names), 500):
        part = names[at : at + 500]
        text = output(["apt-cache", *apt.settings(), "show", "--no-all-versions", *part])
        for block in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", block, re.M))
            if "Package" in fields:
                summary = fields.get("Description-en") or fields.get("Description", "")
                found[fields["Package"]] = {"version": fields.get("Version", ""), "summary": summary}
    return {name: found[name] for name in names if name in found}


def list_packages(apt: Apt) -> None:
    options = apt.options
    if "upgradable" in options:
        return version(apt)
    if "installed" not in options:
        apt.update_if_old()
    words = ["--installed"] if "installed" in options else []
    text = output(["apt", *apt.settings(), "list", *words, *_meant(options.words)])
    sys.stdout.write("".join(line for line in text.splitlines(keepends=True) if "/" in line))
    return None


def _meant(words: list[str]) -> list[str]:
    have = installed()
    meant = (
        next((group for group in debian_names(word) if all(one in have for one in group)), [word]) for word in words
    )
    return [one for group in meant for one in group]


# ---- info

PARTS = {
    "description": ("description", "${Description}"),
    "webpage": ("webpage", "${Homepage}"),
    "size": ("installed size", "${Installed-Size} KiB"),
    "depends": ("depends on", "${Depends}"),
    "provides": ("provides", "${Provides}"),
}


def info(apt: Apt) -> None:
    options, have = apt.options, installed()
    if "owner" in options:
        return _owners(options.words)
    if not options.words:
        for name, at in sorted(have.items()):
            print(f"{name}-{at}" if "verbose" in options else name.replace(VIRTUAL, "", 1))
        return None
    missing = 0
    for word in options.words:
        packages = next((g for g in [[VIRTUAL + word], *debian_names(word)] if all(one in have for one in g)), None)
        if packages is None:
            missing += 1
            continue
        if "installed" in options:
            print(word)
            continue
        for package in packages:
            _about(package, have[package], options)
    if missing and "installed" in options:
        sys.exit(1)
    if missing:
        raise Failed("not installed: " + " ".join(w for w in options.words if not _is_installed(w, have)))
    return None


def _is_installed(word: str, have: dict[str, str]) -> bool:
    return any(all(one in have for one in group) for group in [[VIRTUAL + word], *debian_names(word)])


def _about(package: str, at: str, options: Options) -> None:
    asked = [part for part in PARTS if part in options or "all" in options]
    if not asked and not {"contents", "rdepends"} & options.given:
        asked = ["description", "webpage", "size"]
    for part in asked:
        title, form = PARTS[part]
        value = output(["dpkg-query", "-W", "-f", form, package])
        lines = value.split(", ") if part in ("depends", "provides") else [value.split("\n")[0]]
        _section(package, at, title, lines, options)
    if "contents" in options or "all" in options:
        files = output(["dpkg-query", "-L", package]).splitlines()
        inside = [path[1:] for path in files if not Path(path).is_dir() and os.path.lexists(path)]
        _section(package, at, "contains", inside, options)
    if "rdepends" in options or "all" in options:
        _section(package, at, "is required by", _needed_by(package), options)


def _section(package: str, at: str, title: str, lines: list[str], options: Options) -> None:
    if "quiet" not in options:
        print(f"{package}-{at} {title}:")
    print("\n".join(lines) + "\n")


def _owners(paths: list[str]) -> None:
    for path in paths:
        text = output(["dpkg-query", "-S", path]) or output(["dpkg-query", "-S", os.path.realpath(path)])
        found = next((line.partition(":")[0] for line in text.splitlines() if not line.startswith("diversion")), None)
        if found is None:
            raise Failed(f"{path}: Could not find owner package")
        print(f"{path} is owned by {found}-{installed().get(found, '')}")


# ---- the program

ACTIONS = {
    "add": add, "del": remove, "update": update, "upgrade": upgrade, "info": info, "search": search, "fix": fix,
    "list": list_packages, "policy": policy, "cache": cache, "version": version,
}  # fmt: skip


def perform(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if "version" in options:
        print("apk (Debian's packages, by " + output(["apt-get", "--version"]).split(" (")[0] + ")")
        return 0
    if "print_arch" in options:
        print(architecture())
        return 0
    if options.words and not options.command:
        raise Failed(f"'{options.words[0]}' is not an apk command here; there are {', '.join(ACTIONS)}")
    if "help" in options or not options.command:
        print(USAGE, end="")
        return 0 if "help" in options else 1
    if shutil.which("apt-get") is None:
        raise Failed("there is no apt-get here, which does the work")
    with Apt(options) as apt:
        ACTIONS[options.command](apt)
    return 0


def main() -> int:
    try:
        return perform(sys.argv[1:])
    except Failed as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
