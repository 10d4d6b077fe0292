"""The page at `/`."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Triage</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}
pre{overflow:auto;background:#8882;padding:1rem}
</style>
<h1>Triage</h1>
<p>A priority- and GPU-aware inference queue on Kafka. This is its gateway.</p>
<pre>curl -s localhost:8400/v1/async/submit -H 'content-type: application/json' \\
  -d '{"priority": "high", "messages": [{"role": "user", "content": "hello"}]}'</pre>
<ul>
<li><a href="/docs">Every route</a> (<a href="/openapi.json">openapi.json</a>)</li>
<li><a href="/v1/async/health">Health</a>, <a href="/v1/async/stats">figures</a>, <a href="/metrics">metrics</a></li>
</ul>
</html>
"""
