"""The style of all HTML pages, and the template of the comparison page, which `sed.studies.report` fills in."""

from __future__ import annotations

from string import Template

STYLE = """:root { --ink: #1c2333; --soft: #667085; --line: #e4e7ec; --accent: #3454d1; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 14px; } .lead { font-size: 18px; } .soft, section p { color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px;
  margin-top: 20px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px;
  margin-top: 22px; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.tile b { display: block; font-size: 26px; color: var(--accent); font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13.5px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400; }
tr > :first-child { text-align: left; } thead th { color: var(--soft); font-size: 14px; }
td.best { font-weight: 700; color: var(--accent); } tbody tr:last-child > * { border-bottom: 0; }
svg, img { display: block; max-width: 100%; height: auto; } svg { width: 100%; } img { margin: 0 auto; }
table + p { margin: 10px 0 0; font-size: 14px; }
pre { margin: 0 0 18px; padding: 14px 16px; background: #f6f7f9; border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; } code, pre { font: 13.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.facts td, .facts th { text-align: left; } h2:not(:first-child) { margin-top: 26px; }
"""

PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
"""
    + STYLE
    + """</style></head><body><main>
<h1>$title</h1>
<p class="lead">$verdict</p>
<p class="soft">One run each: this page alone says nothing about the spread over seeds. All models are the last of
their run; no step was chosen on $dataset.</p>
<div class="tiles">$tiles</div>
<section><h2>Results on $dataset, percent</h2>
<table><thead><tr><th></th>$head</tr></thead><tbody>
$body</tbody></table>$note</section>
$by_class
<section><h2>How it went</h2>$curves</section>
$picture
<section class="facts"><h2>Commands</h2><pre>$commands</pre>
<h2>All that differs between the two configurations</h2>
<table><thead><tr><th>key</th><th>$baseline</th><th>$treated</th></tr></thead><tbody>$difference</tbody></table>
<h2>Seed and versions</h2><table><tbody>$facts</tbody></table></section>
</main></body></html>
"""
)
