#!/bin/sh
# Build the component `guest.wasm` of app.py and what it imports.
set -eu
cd "$(dirname "$0")"
exec componentize-py -d wit -w basic componentize app -o guest.wasm
