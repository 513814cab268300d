"""Files of weights: on this machine, or fetched from a hub by the extra that does that."""

from pathlib import Path

from ct3dlib.errors import CheckpointError

_HUB = "hf://"


def local_file(weights: str) -> Path:
    """Return the file of some weights, fetched first where it lies on a hub.

    Args:
        weights: A path, or hf://OWNER/REPOSITORY/FILE; HF_ENDPOINT and HF_HOME count.

    Raises:
        CheckpointError: The address is none, the extra is not installed, or fetching failed.
    """
    if not weights.startswith(_HUB):
        return Path(weights).expanduser()
    owner, _, rest = weights.removeprefix(_HUB).partition("/")
    repository, _, name = rest.partition("/")
    if not name:
        raise CheckpointError(f"{weights}: no file; wanted hf://OWNER/REPOSITORY/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise CheckpointError(
            f"{weights}: fetching needs huggingface_hub; pip install 'ct3dlib[hub]', or fetch the "
            f"file by hand and give its path"
        ) from error
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", name))
    except Exception as error:  # the errors of the hub's HTTP client have no base but this
        raise CheckpointError(
            f"{weights}: cannot be fetched ({type(error).__name__}: {error}); fetch the file by "
            f"hand and give its path"
        ) from error
