"""Fetches SVIDs and bundles from a Workload API with the `spiffe` package, and prints what it got as JSON.

    fetch.py unix:///path/to.sock
"""

import json
import sys

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import WorkloadApiClient


def public(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def main(socket):
    with WorkloadApiClient(socket) as client:
        context = client.fetch_x509_context(timeout=10)
        svid = context.default_svid
        bundles = client.fetch_x509_bundles(timeout=10)
        try:
            client.fetch_jwt_svid({"somebody"}, timeout=10)
            jwt = "issued"
        except Exception as error:  # the package has its own kind for each call
            jwt = str(error)
    leaf = svid.cert_chain[0]
    print(
        json.dumps(
            {
                "id": str(svid.spiffe_id),
                "keyFits": public(svid.private_key.public_key()) == public(leaf.public_key()),
                "federated": sorted(b.trust_domain.name for b in context.x509_bundle_set.bundles),
                "roots": {b.trust_domain.name: len(b.x509_authorities) for b in bundles.bundles},
                "jwt": jwt,
            }
        )
    )


main(sys.argv[1])
