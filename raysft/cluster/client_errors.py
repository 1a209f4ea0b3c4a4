"""What went wrong between this client and a cluster."""

from __future__ import annotations

from raysft.cluster.address import Address
from raysft.errors import UserError, describe_error
from raysft.ray_shortcuts import status_in_text

REFUSED = (401, 403)
GONE = 404


# By kinds and statuses, never by words: a run named by a time with 401 in it was once taken for
# one that was refused.
def http_status(error: BaseException) -> int | None:
    """The HTTP status that an error of Ray's client, requests or aiohttp stands for; None where
    there was none.
    """
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError):  # what Ray's client makes of 401 and 403
        return REFUSED[0]
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status
    if isinstance(error, RuntimeError):  # what Ray's client makes of any other status
        return status_in_text(error)
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that nobody answers."""
    import aiohttp
    import requests

    return isinstance(
        error,
        (
            ConnectionError,
            TimeoutError,
            requests.ConnectionError,
            requests.Timeout,
            aiohttp.ClientConnectionError,
        ),
    )


def explained(address: Address, error: Exception) -> UserError:
    """An error in one line: who, what, what to do."""
    import requests

    status = http_status(error)
    if status in REFUSED:
        return refusal(address)
    # Before what cannot be reached: to requests an SSLError is a ConnectionError as well.
    if isinstance(error, requests.exceptions.SSLError):
        return UserError(
            str(address),
            f"has no certificate that this machine trusts ({describe_error(error)})",
            "set REQUESTS_CA_BUNDLE to the file of the one that signed it",
        )
    if is_unreachable(error):
        return UserError(
            str(address),
            "cannot be reached",
            "is the cluster up, and the tunnel (`raysft connect`) open?",
        )
    if status == GONE:
        return UserError(
            str(address),
            "does not know what it was asked for (HTTP 404)",
            "is that the dashboard of a Ray cluster, and was the cluster started again meanwhile?",
        )
    # What broke in the cluster stands at the end of its traceback.
    said = describe_error(error, -1 if status else 0)
    return UserError(
        str(address), f"did not do what it was asked ({f'HTTP {status}, ' if status else ''}{said})"
    )


def refusal(address: Address) -> UserError:
    """The token is not the cluster's."""
    return UserError(
        str(address),
        "refuses this client: the cluster's token is missing here, or another one",
        "copy ~/.ray/auth_token from the head to the same place here",
    )
