"""``s3://bucket/prefix``: S3, and whatever speaks it.

    store.py       S3Store: each operation tried until its time is over
    bucket.py      a bucket that is open: credentials, the direct way, the client
    operations.py  the five requests that a store sends, their results and errors
    direct.py      the five as one signed HTTP exchange each, past botocore's client
    client.py      the five through aiobotocore's client, by its documented interface alone
    commands.py    what only the commands send: through the client
    endpoint.py    where direct requests go, read off requests that the client composes
    signature.py   how direct requests are signed
    documents.py   S3's XML
    options.py     what a store is opened with
    session.py     sessions of aiobotocore: credentials and region
    prefork.py     what is found out once, and inherited by forked processes
    errors.py      which errors pass, and what each means for the person on call
    _botocore.py   every internal of botocore, aiobotocore and aiohttp that makes this faster

Importing it imports aiobotocore, so `stores` does that late, on the I/O thread or before a fork.
"""

from __future__ import annotations

from async_state.stores.s3.options import S3Options as S3Options
from async_state.stores.s3.prefork import prepare as prepare
from async_state.stores.s3.store import S3Store as S3Store
