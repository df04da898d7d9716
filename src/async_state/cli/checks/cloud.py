"""What ``gs://`` and ``az://`` have alike: credentials, endpoint, TLS, and whether the bucket or container is there."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from async_state.cli.checks import Add, azure, fail, google, ok, tls
from async_state.errors import AsyncStateError
from async_state.stores.cloud.diagnose import Diagnosis, diagnosis
from async_state.stores.cloud.place import Place

#: What each cloud calls the place of objects.
_BUCKET: Final = {"gs": "bucket", "az": "container"}


async def check(place: Place, timeout: float, add: Add) -> bool:
    """Look how the bucket or container is reached, and what its own settings do to state.

    Args:
        place: The store's.
        timeout: Seconds for each request.
        add: Takes the findings.

    Returns:
        Whether operations may succeed.
    """
    subject = "credentials"
    try:
        async with diagnosis(place, timeout) as found:
            await found.authorize()
            add(ok(subject, f"from {place.credentials}"))
            subject = "endpoint"
            if found.is_proxied:
                add(ok(subject, f"{place.endpoint}, through a proxy"))
            else:
                encryption = await found.tls()
                add(ok(subject, place.endpoint))
                add(tls.finding(place.endpoint, encryption))
            return await _bucket(place, found, add)
    except AsyncStateError as e:
        add(fail(subject, str(e)))
        return False


async def _bucket(place: Place, found: Diagnosis, add: Add) -> bool:
    scheme, name = urlsplit(place.url)[:2]
    answer = await found.bucket()
    if answer.is_missing:
        called = _BUCKET[scheme]
        advice = "Create it, or correct [async_state] url"
        add(fail(called, f"there is no {called} {name} at {place.endpoint}", advice))
        return False
    # Where not even the bucket can be asked, the operations that follow say why.
    if answer.refused and not answer.is_denied:
        return True
    if scheme == "gs":
        findings = [*google.settings(answer, name, place.prefix)]
    else:
        findings = [*azure.of_container(answer), *azure.of_service(await found.service())]
    for finding in findings:
        add(finding)
    return True
