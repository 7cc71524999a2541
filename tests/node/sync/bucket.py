"""Making an S3 bucket: the one request that the object store library does not make (signature version 4)."""

import hashlib
import hmac
import time
import urllib.request
from urllib.parse import urlsplit


def create_bucket(endpoint: str, name: str, access: str, secret: str) -> None:
    host = urlsplit(endpoint).netloc
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    day, empty = stamp[:8], hashlib.sha256(b"").hexdigest()
    signed = "host;x-amz-content-sha256;x-amz-date"
    canonical = f"PUT\n/{name}\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n\n{signed}\n{empty}"
    scope = f"{day}/us-east-1/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + secret).encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    headers = {
        "x-amz-date": stamp,
        "x-amz-content-sha256": empty,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={signed}, Signature={signature}",
    }
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=60):
        pass
