"""S3's documents, as stores write them: with a namespace, with a prefix for it, or without one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from xml.etree import ElementTree

import pytest

from async_state.stores.base import Entry, Page
from async_state.stores.s3 import documents
from async_state.stores.s3.operations import NotS3Error, Refusal

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

Document = Callable[[str], bytes]


def named(content: str) -> bytes:
    return content.replace(">", f' xmlns="{NAMESPACE}">', 1).encode()


def with_a_prefix(content: str) -> bytes:
    root = ElementTree.fromstring(named(content))  # noqa: S314
    found: bytes = ElementTree.tostring(root)
    assert b"<ns0:" in found
    return found


@pytest.fixture(params=[named, with_a_prefix, str.encode], ids=["namespace", "a prefix for it", "no namespace"])
def document(request: pytest.FixtureRequest) -> Document:
    made: Document = request.param
    return made


def contents(key: str = "v1/a%2Fb+c", size: str = "7", modified: str = "2026-11-27T05:41:27.123Z") -> str:
    return (
        f'<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{modified}</LastModified><ETag>"X0a1bX"</ETag>'
        "</Contents>"
    )


def listing(*parts: str) -> str:
    return f"<ListBucketResult>{''.join(parts)}</ListBucketResult>"


ENTRY = Entry("v1/a%2Fb+c", 7, datetime(2026, 11, 27, 5, 41, 27, tzinfo=timezone.utc), "X0a1bX")


def test_what_asks_to_delete_keys() -> None:
    assert documents.delete_document(["a", "<&>\r\n\N{GRINNING FACE}"]).decode() == (
        f'<Delete xmlns="{NAMESPACE}"><Object><Key>a</Key></Object>'
        "<Object><Key>&lt;&amp;&gt;&#xD;&#xA;\N{GRINNING FACE}</Key></Object><Quiet>true</Quiet></Delete>"
    )


def test_keys_that_were_not_deleted(document: Document) -> None:
    errors = "<Error><Key>a/b+c</Key><Code>SlowDown</Code><Message>Wait</Message></Error><Error><Key>d</Key></Error>"
    found = documents.refusals(document(f"<DeleteResult><Deleted><Key>e</Key></Deleted>{errors}</DeleteResult>"))
    assert found == [Refusal("a/b+c", "SlowDown", "Wait"), Refusal("d", "", "")]


def test_all_keys_were_deleted(document: Document) -> None:
    assert documents.refusals(document("<DeleteResult></DeleteResult>")) == []


def test_a_page(document: Document) -> None:
    token = "<NextContinuationToken>more</NextContinuationToken>"
    content = listing("<IsTruncated>true</IsTruncated>", token, contents(), contents("d"), "<Name>bucket</Name>")
    assert documents.page(document(content)) == Page([ENTRY, ENTRY._replace(name="d")], "more")


def test_a_time_without_a_fraction(document: Document) -> None:
    assert documents.page(document(listing(contents(modified="2026-11-27T05:41:27Z")))) == Page([ENTRY], None)


def test_a_page_of_encoded_keys(document: Document) -> None:
    content = listing("<EncodingType>url</EncodingType>", contents())
    assert documents.page(document(content)) == Page([ENTRY._replace(name="v1/a/b c")], None)


@pytest.mark.parametrize("ending", ["", "<IsTruncated>false</IsTruncated>"])
def test_the_last_page(document: Document, ending: str) -> None:
    token = "<NextContinuationToken>more</NextContinuationToken>"
    assert documents.page(document(listing(ending, token))) == Page([], None)


def test_an_entry_without_an_etag(document: Document) -> None:
    content = listing(contents().replace('<ETag>"X0a1bX"</ETag>', ""))
    assert documents.page(document(content)).entries == [ENTRY._replace(etag="")]


def test_what_is_lacking_is_named_as_s3_does(document: Document) -> None:
    with pytest.raises(NotS3Error, match=r"^the answer lacks a Key$"):
        documents.page(document(listing(contents(key=""))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (listing(contents(key="")), "^the answer lacks a Key$"),
        (listing(contents(size="")), "^the answer lacks a Size$"),
        (listing(contents(modified="")), "^the answer lacks a LastModified$"),
        (listing(contents(modified="yesterday")), "^the answer has a time that is none: 'yesterday'$"),
        (listing("<IsTruncated>true</IsTruncated>"), "^the answer lacks a NextContinuationToken$"),
        ("<Error><Code>SlowDown</Code></Error>", "^the answer is not a ListBucketResult$"),
        ("<html", "^the answer is no XML document: unclosed token"),
        ("", "^the answer is no XML document: no element found"),
    ],
)
def test_what_is_no_page(content: str, message: str) -> None:
    with pytest.raises(NotS3Error, match=message):
        documents.page(content.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<DeleteResult><Error><Code>SlowDown</Code></Error></DeleteResult>", "^the answer lacks a Key$"),
        (listing(), "^the answer is not a DeleteResult$"),
    ],
)
def test_what_is_no_answer_to_a_deletion(content: str, message: str) -> None:
    with pytest.raises(NotS3Error, match=message):
        documents.refusals(content.encode())


def test_an_error(document: Document) -> None:
    content = document("<Error><Code>NoSuchKey</Code><Message>None such</Message><Resource/></Error>")
    assert documents.error(content) == {"Code": "NoSuchKey", "Message": "None such", "Resource": ""}


@pytest.mark.parametrize("content", [b"", b"<html", listing().encode()])
def test_what_is_no_error(content: bytes) -> None:
    assert documents.error(content) == {}
