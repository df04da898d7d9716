"""What only S3 has: credentials, endpoint, region, TLS, the bucket's own settings, and the way that requests take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from async_state.cli.checks import KINDS, Add, Finding, fail, ok, tls, warn
from async_state.errors import StoreError
from async_state.stores.s3 import _botocore
from async_state.stores.s3.diagnose import Answer, Diagnosis, diagnosis
from async_state.stores.s3.options import S3Options

#: Classes in which an object can't be read at once.
_ARCHIVES: Final = ("GLACIER", "DEEP_ARCHIVE")
_ARCHIVE_ADVICE: Final = "Leave the prefix out of the rule: its objects could not be read at once any more"


async def check(options: S3Options, timeout: float, add: Add) -> bool:
    """Look how the bucket is reached, and what its own settings do to state.

    Args:
        options: The store's.
        timeout: Seconds for each request.
        add: Takes the findings.

    Returns:
        Whether operations may succeed.
    """
    subject = "credentials"
    try:
        async with diagnosis(options, timeout) as found:
            add(ok(subject, f"from {found.provider}"))
            subject = "endpoint"
            if found.is_proxied:
                add(ok(subject, f"{found.url}, through a proxy"))
            else:
                encryption = await found.tls()
                add(ok(subject, found.url))
                add(tls.finding(found.url, encryption))
            place = await found.place()
            if place.is_missing:
                advice = "Create it, or correct [async_state] url"
                add(fail("bucket", f"there is no bucket {options.bucket} at {found.url}", advice))
                return False
            add(_region(options, place.region, place.bucket_region))
            add(_fast_path(found))
            versioning, lifecycle = await found.versioning(), await found.lifecycle()
            lock = await found.object_lock()
    except StoreError as e:
        add(fail(subject, str(e)))
        return False
    # Where not even the bucket can be asked, the operations that follow say why.
    if any(not answer.refused or answer.is_unknown or answer.is_denied for answer in (versioning, lifecycle, lock)):
        rules = [rule for rule in lifecycle.found.get("Rules", ()) if rule.get("Status") == "Enabled"]
        add(_versioning(versioning, rules, options.prefix))
        for finding in _lifecycle(lifecycle, rules, options.prefix):
            add(finding)
        add(_from_answer("object lock", lock, "s3:GetBucketObjectLockConfiguration") or _object_lock(lock))
    return True


def _lifecycle(answer: Answer, rules: Sequence[Mapping[str, Any]], prefix: str) -> list[Finding]:
    unknown = _from_answer("lifecycle", answer, "s3:GetLifecycleConfiguration")
    if unknown is not None:
        return [unknown]
    return [*_rules_against(rules, prefix)] or [ok("lifecycle", "no rule deletes or archives state")]


def _from_answer(check: str, answer: Answer, action: str) -> Finding | None:
    """Return the finding for a setting that the store does not tell, or ``None``."""
    if answer.is_unknown:
        return ok(check, "this store has no such setting")
    if answer.refused:
        return warn(
            check, f"not known: {answer.refused}", f"Allow {action} on the bucket to whoever runs this, or look there"
        )
    return None


def _rules_against(rules: Sequence[Mapping[str, Any]], prefix: str) -> Iterator[Finding]:
    """Yield a finding for each lifecycle rule that would delete or archive state.

    Args:
        rules: Those that are enabled, as botocore parses them.
        prefix: Of the store: empty, or ending in ``/``.
    """
    for rule in rules:
        if not _meets(rule, prefix):
            continue
        name = f"the rule {rule.get('ID') or 'without an id'!r}"
        expiration = rule.get("Expiration", {})
        if "Days" in expiration or "Date" in expiration:
            when = f"{expiration['Days']} days after it was set" if "Days" in expiration else f"{expiration['Date']:%F}"
            yield fail(
                "lifecycle",
                f"{name} deletes state {when}, also what tasks and assets still refer to",
                "Leave the prefix out of the rule; [state_store] default_retention_days and the command sweep delete "
                "what nobody needs any more",
            )
        for transition in rule.get("Transitions", ()):
            if transition.get("StorageClass") in _ARCHIVES:
                yield fail("lifecycle", f"{name} moves state to {transition['StorageClass']}", _ARCHIVE_ADVICE)


def _meets(rule: Mapping[str, Any], prefix: str) -> bool:
    """Tell whether the rule is about some of our objects, which have no tags."""
    chosen = rule.get("Filter", {})
    both = chosen.get("And", {})
    if "Tag" in chosen or both.get("Tags"):
        return False
    start = _start(rule)
    return any(f"{prefix}{kind}".startswith(start) or start.startswith(f"{prefix}{kind}") for kind in KINDS)


def _start(rule: Mapping[str, Any]) -> str:
    chosen = rule.get("Filter", {})
    return str(rule.get("Prefix") or chosen.get("Prefix") or chosen.get("And", {}).get("Prefix") or "")


def _versioning(answer: Answer, rules: Sequence[Mapping[str, Any]], prefix: str) -> Finding:
    unknown = _from_answer("versioning", answer, "s3:GetBucketVersioning")
    if unknown is not None:
        return unknown
    status = answer.found.get("Status", "")
    if not status:
        return ok("versioning", "off")
    ends = any(
        "NoncurrentVersionExpiration" in rule
        and _meets(rule, prefix)
        and all(f"{prefix}{kind}".startswith(_start(rule)) for kind in KINDS)
        for rule in rules
    )
    if ends:
        return ok("versioning", f"{status.lower()}, and a lifecycle rule ends old versions")
    return warn(
        "versioning",
        f"{status.lower()}: every earlier value of every key is kept for ever, also what was deleted",
        "Add a lifecycle rule with NoncurrentVersionExpiration for the prefix",
    )


def _object_lock(answer: Answer) -> Finding:
    configuration = answer.found.get("ObjectLockConfiguration", {})
    retention = configuration.get("Rule", {}).get("DefaultRetention", {})
    if retention:
        unit = "Days" if retention.get("Days") else "Years"
        return fail(
            "object lock",
            f"each object is kept for {retention.get(unit)} {unit.lower()} by default: S3 refuses to store state",
            "Keep state in a bucket without a default retention",
        )
    return ok("object lock", "on, without a default retention" if configuration else "off")


def _region(options: S3Options, used: str, of_bucket: str) -> Finding:
    if not of_bucket or of_bucket == used or (used == "aws-global" and of_bucket == "us-east-1"):
        return ok("region", used)
    detail = f"the bucket is in {of_bucket}, and requests are signed for {used}"
    advice = f"Set [async_state] region_name = {of_bucket}"
    if options.endpoint_url:
        return warn("region", detail, f"{advice}, unless this store takes any region")
    return fail("region", f"{detail}: the first request of each process is refused", advice)


def _fast_path(found: Diagnosis) -> Finding:
    missing = _botocore.warned()
    if found.is_direct and not missing:
        return ok("fast path", "in use: requests are sent directly")
    if missing:
        return warn(
            "fast path",
            f"not in use, or not all of it, as this is not known: {', '.join(missing)}",
            "Operations work, but slower: look for a newer release of airflow-async-state",
        )
    return ok("fast path", "not in use behind a proxy, or for S3 Express: requests go through botocore's client")
