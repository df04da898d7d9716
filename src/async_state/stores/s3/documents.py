"""S3's documents: what DeleteObjects is sent, and what lists, deletions and errors answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from async_state.stores.base import Entry, Page
from async_state.stores.s3.operations import NotS3Error, Refusal

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
#: Characters that XML would not give back as they are.
_ESCAPES: Final = {"\r": "&#xD;", "\n": "&#xA;"}


def delete_document(keys: Sequence[str]) -> bytes:
    """Return what asks DeleteObjects to delete ``keys``, and to name only those that are left."""
    objects = "".join(f"<Object><Key>{escape(key, _ESCAPES)}</Key></Object>" for key in keys)
    return f'<Delete xmlns="{_NAMESPACE}">{objects}<Quiet>true</Quiet></Delete>'.encode()


def refusals(content: bytes) -> list[Refusal]:
    """Return the keys that an answer to DeleteObjects names as not deleted.

    Raises:
        NotS3Error: it is no such answer.
    """
    root, namespace = _document(content, "DeleteResult")
    key, code, message = namespace + "Key", namespace + "Code", namespace + "Message"
    return [
        Refusal(_text(error, key), error.findtext(code) or "", error.findtext(message) or "")
        for error in root.iterfind(namespace + "Error")
    ]


def page(content: bytes) -> Page:
    """Return the part of a listing that an answer to ListObjectsV2 holds.

    Raises:
        NotS3Error: it is no such answer, an entry lacks something, or it is truncated without a token for the rest.
    """
    root, namespace = _document(content, "ListBucketResult")
    key, size, modified, etag = (namespace + name for name in ("Key", "Size", "LastModified", "ETag"))
    is_encoded = root.findtext(namespace + "EncodingType") == "url"
    entries = [
        Entry(
            unquote_plus(_text(item, key)) if is_encoded else _text(item, key),
            int(_text(item, size)),
            _time(_text(item, modified)),
            (item.findtext(etag) or "").strip('"'),
        )
        for item in root.iterfind(namespace + "Contents")
    ]
    truncated = root.findtext(namespace + "IsTruncated") == "true"
    return Page(entries, _text(root, namespace + "NextContinuationToken") if truncated else None)


def error(content: bytes) -> dict[str, str]:
    """Return the fields of an error's document, or nothing if ``content`` is none."""
    try:
        root, _ = _document(content, "Error")
    except NotS3Error:
        return {}
    return {_name(child): child.text or "" for child in root}


def _document(content: bytes, name: str) -> tuple[ElementTree.Element, str]:
    """Return the document's root, and what its elements' tags begin with; not every store gives the namespace."""
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - a store can harm those who trust it with their state anyway
    except ElementTree.ParseError as e:
        raise NotS3Error(f"the answer is no XML document: {e}") from None
    if _name(root) != name:
        raise NotS3Error(f"the answer is not a {name}")
    return root, root.tag.removesuffix(name)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ElementTree.Element, tag: str) -> str:
    text = element.findtext(tag)
    if not text:
        raise NotS3Error(f"the answer lacks a {tag.rpartition('}')[2]}")
    return text


def _time(text: str) -> datetime:
    try:
        # UTC to the second, as HEAD has it; fractions and their lengths differ from store to store.
        return datetime.fromisoformat(f"{text[:19]}+00:00")
    except ValueError:
        raise NotS3Error(f"the answer has a time that is none: {text!r}") from None
