"""Chromium in a sandbox, as the command line and the Python SDK start it."""

PORT = 9222  # DevTools'
MEMORY_MB = 2048
# It listens on loopback, where the gateway reaches it. Its own sandbox needs namespaces, which ours denies; ours is the
# boundary. `exec` makes its exit the script's.
SCRIPT = """\
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo 'there is no chromium in this image' >&2
    exit 127
}
rm -f /root/.chromium/Singleton*
exec "$chromium" --headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --no-first-run \\
    --remote-debugging-port=9222 --user-data-dir=/root/.chromium about:blank
"""
