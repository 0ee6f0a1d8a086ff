"""The frame of a report as a page: its HTML around the text, and how it looks."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d5dae0;
  --page: #fff; --band: #f5f7f9; --link: #2f6fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #3a424c;
  --page: #15181c; --band: #1d2127; --link: #7fb2e6; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main, nav { box-sizing: border-box; max-width: 47rem; margin: 0 auto; padding: 1rem 1.2rem; }
h1 { line-height: 1.2; margin: 1.2rem 0 1rem; }
h2 { margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
h3, h4 { margin: 1.6rem 0 .4rem; }
a { color: var(--link); }
code { background: var(--band); padding: .1em .3em; border-radius: 3px; font-size: .88em; }
pre { background: var(--band); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; }
nav ul { list-style: none; margin: 0; padding: 0; font-size: .9rem; }
nav li { margin: .3rem 0; line-height: 1.3; }
nav .h3 { padding-left: 1rem; } nav .h4 { padding-left: 2rem; }
nav a { color: var(--soft); text-decoration: none; }
figure { margin: 1.4rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .caption { color: var(--soft); font-size: .9rem; margin: .5rem 0; }
figcaption em, .caption em { font-style: normal; }
.scroll { overflow-x: auto; margin: .5rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { border-bottom-width: 2px; }
th, td[style*="right"] { white-space: nowrap; }
td { min-width: 2.5rem; max-width: 32rem; overflow-wrap: break-word; }
tbody tr:nth-child(even) { background: var(--band); }
@media (min-width: 64rem) {
  body { display: grid; grid-template-columns: 15rem minmax(0, 47rem);
    padding-left: max(0rem, (100vw - 90rem) / 2); }
  nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto;
    margin: 0; padding-top: 2.6rem; }
  main { margin: 0; width: 100%; }
  .scroll { width: max-content;
    max-width: max(100%, min(100vw, 50vw + 45rem) - 18.5rem); } }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --band: #fff; --link: #000; }
  body { display: block; font-size: 10.5pt; padding: 0; }
  nav { display: none; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; width: auto; max-width: none; }
  table { font-size: 8.5pt; } figure, tr { break-inside: avoid; }
  h2, h3, h4, .caption { break-after: avoid; } }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
<main>
{body}</main>
</body>
</html>
"""
