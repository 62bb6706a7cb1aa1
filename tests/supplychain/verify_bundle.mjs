// Usage: node verify_bundle.mjs MODULES_FOLDER BUNDLE PUBLIC_KEY. Verifies a bundle with @sigstore/verify; prints the payload.
import { createHash, createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, bundlePath, keyPath] = process.argv.slice(2);
const require = createRequire(`${modules}/index.js`);
const { bundleFromJSON } = require("@sigstore/bundle");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");

const spki = createPublicKey(readFileSync(keyPath)).export({ type: "spki", format: "der" });
const hint = createHash("sha256").update(spki).digest("base64");
const root = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const trust = toTrustMaterial(root, { [hint]: { rawBytes: spki.toString("base64") } });
const bundle = bundleFromJSON(JSON.parse(readFileSync(bundlePath, "utf8")));
const verifier = new Verifier(trust, { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 });
verifier.verify(toSignedEntity(bundle));
process.stdout.write(bundle.content.dsseEnvelope.payload);
