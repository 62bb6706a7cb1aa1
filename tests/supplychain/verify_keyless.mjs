// Usage: node verify_keyless.mjs MODULES_FOLDER BUNDLE TRUSTED_ROOT IDENTITY ISSUER. Verifies a keyless bundle with
// @sigstore/verify; prints the payload.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, bundlePath, rootPath, identity, issuer] = process.argv.slice(2);
const require = createRequire(`${modules}/index.js`);
const { bundleFromJSON } = require("@sigstore/bundle");
const { TrustedRoot } = require("@sigstore/protobuf-specs");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const trust = toTrustMaterial(TrustedRoot.fromJSON(JSON.parse(readFileSync(rootPath, "utf8"))));
const bundle = bundleFromJSON(JSON.parse(readFileSync(bundlePath, "utf8")));
const escaped = identity.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
new Verifier(trust).verify(toSignedEntity(bundle), { subjectAlternativeName: `^${escaped}$`, extensions: { issuer } });
process.stdout.write(bundle.content.dsseEnvelope.payload);
