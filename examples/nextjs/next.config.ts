import path from "node:path";
import type { NextConfig } from "next";

// The client module is ../../web: the bundler reads nothing outside of its root.
const root = path.join(import.meta.dirname, "../..");

const config: NextConfig = {
  turbopack: { root },
  outputFileTracingRoot: root,
  poweredByHeader: false,
};

export default config;
