"""What the hub refuses, in one line, and its datasets. Written by hand, not tangled."""

from pathlib import Path

import datasets
from datasets import DatasetDict, load_dataset
from huggingface_hub import (constants, get_hf_file_metadata, hf_hub_url, is_offline_mode,
                             snapshot_download)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from day9.errors import InputError, one_line

NOT_CACHED = ("the cache does not hold it, and the hub does not answer or HF_HUB_OFFLINE is set: "
              "check --{name}, try again, or name a folder")
HUB_REMEDIES = {  # by the name of the exception; the first that fits
    "GatedRepoError": "its owner gives access on request: ask for it on its page on the hub, and "
                      "log in with `hf auth login`",
    "RevisionNotFoundError": "there is no such revision: check --{revision}",
    "RepositoryNotFoundError": "there is no such file or folder, and the hub shows nothing of that "
                               "name: check --{name}, and if it is private log in with "
                               "`hf auth login`",
    "HFValidationError": "there is no such file or folder, and nothing on the hub can have that "
                         "name: check --{name}",
    "LocalEntryNotFoundError": NOT_CACHED,
    "ConnectionError": NOT_CACHED,
    "TransportError": "the download broke off: try again",
    "HfHubHTTPError": "the hub refuses the login: log in again with `hf auth login`",
}
REFUSED = (401, 403, 404)  # status codes of an answer; others, such as 503, are none


def is_silent(name: str, repo_type: str, revision: str | None) -> bool:
    """Ask the hub once for a "model" or "dataset"; True, with a warning, if it does not answer.

    Raises what it answers if it refuses.
    """
    if is_offline_mode():
        return True
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", repo_type=repo_type,
                                        revision=revision))
    except EntryNotFoundError:
        pass  # there is such a repository, and that was the question
    except Exception as error:  # what keeps the hub from answering has no common public class
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED
        cache = getattr(error, "filename", None)  # which cannot be read
        if refused or cache or isinstance(error, HFValidationError):
            raise
        print(f"warning: the hub does not answer ({one_line(error)}): "
              "only its cache on this machine is used")
        return True
    return False


def causes(error: BaseException) -> list[BaseException]:
    """An exception and those it was raised from, the first cause last."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [error, *causes(cause)] if cause else [error]


def cache_at_fault(chain: list[BaseException]) -> str | None:
    """The cache that could not be written and why, if that is among the causes."""
    for folder in (constants.HF_HOME, constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE):
        for cause in chain:
            if isinstance(cause, OSError) and isinstance(cause.filename, str | Path):
                cache, tried = Path(folder), Path(cause.filename)
                missing = isinstance(cause, FileNotFoundError) and cache.exists()
                if not missing and (cache.is_relative_to(tried) or tried.is_relative_to(cache)):
                    return f"{cache} ({cause.strerror})"
    return None


def cannot_load(error: Exception, name: str, option_name: str) -> InputError:
    """What to say when a folder or something on the hub cannot be loaded.

    `option_name` is "model", "run", "data" or "embedder".
    """
    chain = causes(error)
    kinds = [kind.__name__ for cause in chain for kind in type(cause).__mro__]
    if cache := cache_at_fault(chain):
        return InputError(f"downloads cannot be kept in {cache}: set HF_HOME to a folder that can "
                          "be written")
    remedy = f"{one_line(chain[-1])}: check --{option_name}"
    if "onfig name" in str(error) or "BuilderConfig" in str(error):
        remedy += ", and choose a configuration with --data-config"
    if known := [kind for kind in HUB_REMEDIES if kind in kinds]:
        revision = "revision" if option_name == "model" else "data-revision"
        remedy = HUB_REMEDIES[known[0]].format(name=option_name, revision=revision)
    return InputError(f"cannot load the {option_name} {name}: {remedy}")


def load_hub_dataset(data: str, config: str | None, revision: str | None) -> DatasetDict:
    """The splits of a dataset on the hub. Raises InputError where it cannot be loaded.

    Where the hub does not answer, the files of this revision in the cache are read: load_dataset
    itself would try the hub for minutes, and then take whichever revision was loaded last.
    """
    try:
        if is_silent(data, "dataset", revision):
            here = snapshot_download(data, repo_type="dataset", revision=revision,
                                     local_files_only=True)
            return DatasetDict(load_dataset(here, config))
        return DatasetDict(load_dataset(data, config, revision=revision))
    except Exception as error:  # the hub's exceptions have no common class
        raise cannot_load(error, data, "data") from error


def check_pointer(path: Path) -> None:
    """Raise InputError for a file that only says where git-lfs keeps the real one."""
    with path.open("rb") as file:
        if file.read(18) == b"version https://gi":
            raise InputError(f"{path} is a pointer of git-lfs, not the file: get it with "
                             "git lfs pull")
