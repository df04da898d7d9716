"""What a bucket's own settings do to state, in Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from async_state.cli.checks import KINDS, Finding, fail, ok, warn
from async_state.cli.output import duration
from async_state.stores.cloud.diagnose import Answer

#: The least days that Google bills an object of a class for.
_BILLED_DAYS: Final = {"NEARLINE": 30, "COLDLINE": 90, "ARCHIVE": 365}
#: Conditions of a rule that only an object which is not the current one meets.
_OF_OLD: Final = ("numNewerVersions", "daysSinceNoncurrentTime", "noncurrentTimeBefore")
#: Conditions of a rule on a time that our objects do not have.
_OF_CUSTOM_TIME: Final = ("daysSinceCustomTime", "customTimeBefore")


def settings(answer: Answer, bucket: str, prefix: str) -> Iterator[Finding]:
    """Yield a finding for each setting.

    Args:
        answer: What Google tells of the bucket.
        bucket: Its name.
        prefix: Of the store: empty, or ending in ``/``.
    """
    if answer.refused:
        yield warn(
            "bucket's settings",
            f"not known: {answer.refused}",
            "Allow storage.buckets.get on the bucket to whoever runs this, or look there (gcloud storage buckets "
            f"describe gs://{bucket})",
        )
        return
    found = answer.found
    rules = [rule for rule in found.get("lifecycle", {}).get("rule", ()) if _meets(rule, found, prefix)]
    yield ok("location", str(found.get("location", "")))
    yield _versioning(found, rules, prefix)
    yield from [*_rules_against(rules)] or [ok("lifecycle", "no rule deletes or archives state")]
    yield _retention(found)
    yield _soft_delete(found, bucket)


def _meets(rule: Mapping[str, Any], found: Mapping[str, Any], prefix: str) -> bool:
    """Tell whether the rule is about some of our objects, which have the bucket's own class and no custom time."""
    condition = rule.get("condition", {})
    classes = condition.get("matchesStorageClass") or [found.get("storageClass")]
    if found.get("storageClass") not in classes or any(name in condition for name in _OF_CUSTOM_TIME):
        return False
    starts = condition.get("matchesPrefix") or [""]
    ours = [f"{prefix}{kind}" for kind in KINDS]
    return any(each.startswith(start) or start.startswith(each) for each in ours for start in starts)


def _is_of_old(rule: Mapping[str, Any]) -> bool:
    condition = rule.get("condition", {})
    return condition.get("isLive") is False or any(name in condition for name in _OF_OLD)


def _rules_against(rules: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield a finding for each rule that would delete or archive state. Google's rules have no names."""
    for rule in rules:
        action, condition = rule.get("action", {}), rule.get("condition", {})
        if _is_of_old(rule):
            continue
        when = f"{condition['age']} days after it was set" if "age" in condition else "as its condition says"
        if action.get("type") == "Delete":
            yield fail(
                "lifecycle",
                f"a rule deletes state {when}, also what tasks and assets still refer to",
                "Leave the prefix out of the rule; [state_store] default_retention_days and the command sweep delete "
                "what nobody needs any more",
            )
        days = _BILLED_DAYS.get(action.get("storageClass", ""))
        if action.get("type") == "SetStorageClass" and days:
            yield warn(
                "lifecycle",
                f"a rule moves state to {action['storageClass']} {when}: each read is billed there, and what is set "
                f"anew or deleted within {days} days is billed until then",
                "Leave the prefix out of the rule",
            )


def _versioning(found: Mapping[str, Any], rules: Sequence[Mapping[str, Any]], prefix: str) -> Finding:
    if not found.get("versioning", {}).get("enabled"):
        return ok("versioning", "off")
    ends = any(rule.get("action", {}).get("type") == "Delete" and _ends_versions(rule, prefix) for rule in rules)
    if ends:
        return ok("versioning", "enabled, and a lifecycle rule ends old versions")
    return warn(
        "versioning",
        "enabled: every earlier value of every key is kept for ever, also what was deleted",
        "Add a lifecycle rule that deletes with daysSinceNoncurrentTime for the prefix, or turn versioning off",
    )


def _ends_versions(rule: Mapping[str, Any], prefix: str) -> bool:
    condition = rule.get("condition", {})
    # What has no newer version, since it was deleted, a number of newer ones does not end.
    if "numNewerVersions" in condition or condition.get("isLive") is True or condition.get("matchesSuffix"):
        return False
    starts = condition.get("matchesPrefix") or [""]
    return all(any(f"{prefix}{kind}".startswith(start) for start in starts) for kind in KINDS)


def _retention(found: Mapping[str, Any]) -> Finding:
    seconds = int(found.get("retentionPolicy", {}).get("retentionPeriod", 0))
    advice = "Keep state in a bucket without one"
    if seconds:
        return fail(
            "retention",
            f"the bucket's policy keeps each object for {duration(seconds)}: no key can be set again or deleted before",
            advice,
        )
    if found.get("defaultEventBasedHold"):
        return fail(
            "retention",
            "each new object is held by default until somebody releases it: no key can be set again or deleted",
            advice,
        )
    return ok("retention", "neither a policy nor a default hold")


def _soft_delete(found: Mapping[str, Any], bucket: str) -> Finding:
    seconds = int(found.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0))
    if not seconds:
        return ok("soft delete", "off")
    return warn(
        "soft delete",
        f"each value that is set anew or deleted is kept, and billed, for {duration(seconds)} more",
        "Unless values are to be restored, turn it off (gcloud storage buckets update "
        f"gs://{bucket} --clear-soft-delete)",
    )
