"""Make .venv, or do nothing when it is up to date. Runs before anything is installed.

Only the standard library, and only syntax that an old Python can read, so that it can say what is
wrong with it.
"""

import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "course-ready")
SOURCES = ["requirements.lock", "pyproject.toml", os.path.join("tools", "setup_venv.py")]
NEEDED_BYTES = 3 * 1024**3
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's documented channel of CPU builds


def stop(message):
    sys.stderr.write(message + "\n")
    sys.exit(1)


def fingerprint():
    digest = hashlib.sha256(ROOT.encode())  # a copied .venv points at the old place
    for name in SOURCES:
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def is_ready():
    try:
        with open(STAMP, encoding="utf-8") as file:
            return file.read() == fingerprint() and os.path.exists(PYTHON)
    except OSError:
        return False


def find_python():
    """This Python if it is new enough, else a newer one of this machine."""
    if sys.version_info >= (3, 11):
        return sys.executable
    for minor in (13, 12, 11, 14):
        found = shutil.which("python3.%d" % minor)
        if found:
            return found
    stop(
        "Python %s is too old: install Python 3.11 or newer, then run make again."
        % platform.python_version()
    )


def make_venv(python):
    environment = own_environment()
    works = os.path.exists(PYTHON) and subprocess.call([PYTHON, "-m", "pip", "--version"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) == 0  # fmt: skip
    if works:
        return
    if subprocess.call([python, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL,
                       env=environment):  # fmt: skip
        stop(
            "The venv module is missing: install it (on Debian and Ubuntu: apt install "
            "python3-venv), then run make again."
        )
    if os.path.exists(VENV):
        print("Replacing an incomplete .venv.")
        shutil.rmtree(VENV)
    if subprocess.call([python, "-m", "venv", VENV], env=environment):
        stop("Making .venv failed: see the lines above.")


def own_environment():
    """The user's environment without what leads Python or pip to another place than .venv.

    Where the packages come from (find-links, indexes, proxies, certificates) stays the user's.
    """
    elsewhere = ["PYTHONHOME", "PYTHONPATH", "PIP_PYTHON"]
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return dict(environment, PIP_ROOT_USER_ACTION="ignore", PIP_DRY_RUN="0", PIP_NO_DEPS="0")


def pip_command(*args):
    """pip install into .venv, whatever pip.conf or PIP_USER, PIP_TARGET, ... say: options count
    more than both. (An empty prefix or root would be the working folder.)"""
    return [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet",
            "--no-user", "--target=", "--root=/", "--prefix", VENV] + list(args)  # fmt: skip


def pip(*args):
    return subprocess.call(pip_command(*args), env=own_environment()) == 0


def locked_torch():
    with open(os.path.join(ROOT, "requirements.lock"), encoding="utf-8") as file:
        return next(line.strip() for line in file if line.startswith("torch=="))


def has_gpu():
    return bool(glob.glob("/proc/driver/nvidia/gpus/*")) or shutil.which("nvidia-smi") is not None


def default_build_is_small(requirement):
    """Whether pip as the user set it up (find-links, extra indexes) would take a CPU build."""
    if platform.system() != "Linux":
        return True
    command = pip_command("--dry-run", "--no-deps", "--ignore-installed", "--report", "-",
                          requirement)  # fmt: skip
    try:
        report = json.loads(subprocess.check_output(
            command, stderr=subprocess.DEVNULL, env=own_environment()))  # fmt: skip
        chosen = report["install"][0]
    except (subprocess.CalledProcessError, ValueError, LookupError):
        return False
    needs = " ".join(chosen["metadata"].get("requires_dist", []))
    return "+cpu" in chosen["metadata"]["version"] or "nvidia" not in needs


def install_torch():
    """Torch first and alone: a CPU build where there is no GPU, so that no CUDA is pulled in."""
    requirement = locked_torch()
    installed = subprocess.run([PYTHON, "-c", "import importlib.metadata as m;"
        "print('torch==' + m.version('torch').split('+')[0])"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=own_environment()).stdout.decode().strip()  # fmt: skip
    if installed == requirement or has_gpu() or default_build_is_small(requirement):
        return pip(requirement)
    if pip("--no-deps", "--index-url", CPU_INDEX, requirement):
        return True
    print("PyTorch's channel of CPU builds cannot be reached: taking the default build, which is "
          "several gigabytes larger.")  # fmt: skip
    return pip(requirement)


def main():
    if is_ready():
        return
    python = find_python()
    if shutil.disk_usage(ROOT).free < NEEDED_BYTES and not os.path.exists(STAMP):
        stop("The disk is too full: installing needs 3 GB free in %s. Make room, then run make "
             "again." % ROOT)  # fmt: skip
    print("Setting up .venv (once; a few minutes and the download that the README names).")
    sys.stdout.flush()
    make_venv(python)
    lock = os.path.join(ROOT, "requirements.lock")
    done = (
        install_torch()
        and pip("-r", lock)
        and pip("--no-deps", "--no-build-isolation", "-e", ROOT)
    )
    if not done:
        free = shutil.disk_usage(ROOT).free
        reason = "the disk is full" if free < 200 * 1024**2 else "see pip's lines above"
        stop("Installing into .venv failed (%s). What is there is kept: run make again." % reason)
    with open(STAMP + ".part", "w", encoding="utf-8") as file:
        file.write(fingerprint())
    os.replace(STAMP + ".part", STAMP)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("Stopped. Run make again to go on.")
    except OSError as error:
        stop("Setting up .venv failed: %s. Make room or mend it, then run make again." % error)
