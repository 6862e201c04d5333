"""The style sheet of the HTML report, light and dark."""

CSS = """\
:root { color-scheme: light dark; --ink: #1c2530; --soft: #5b6876; --paper: #f6f7f9; --card: #fff; --line: #dfe4ea;
  --good: #00795a; --bad: #b8460e; --plain: #4d6075; --same: #0a66a3; --warn: #8a5a00; --warnpaper: #fff7e3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #9aa7b5; --paper: #12161b; --card: #1a2027;
  --line: #2c353f; --good: #3ecf9f; --bad: #ff8a4f; --plain: #a3b4c6; --same: #6cb8f0; --warn: #f0bf5a;
  --warnpaper: #2a2312; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 40px 24px 80px; }
header { margin-bottom: 28px; }
h1 { font-size: 27px; line-height: 1.25; margin: 4px 0 14px; letter-spacing: -.01em; max-width: 60ch;
  overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 10px; overflow-wrap: anywhere; }
section { margin-top: 36px; }
.study { margin: 0; color: var(--soft); font-weight: 600; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; }
.facts span { border: 1px solid var(--line); background: var(--card); border-radius: 999px; padding: 2px 12px;
  font-size: 13px; }
.facts .warn { color: var(--warn); border-color: currentColor; background: var(--warnpaper); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px; margin-top: 0; }
.card { --tone: var(--plain); background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--tone);
  border-radius: 10px; padding: 14px 18px; }
.card.improves, .card.pass { --tone: var(--good); } .card.worse, .card.fail { --tone: var(--bad); }
.card.identical { --tone: var(--same); }
.card h2 { margin: 0 0 6px; font-size: 16px; }
.card h2 small { display: block; color: var(--soft); font-weight: 400; font-size: 13px; }
.card p { margin: 8px 0 0; font-size: 14px; overflow-wrap: anywhere; }
.card .chip { margin: 0 0 6px; color: var(--tone); font-weight: 700; font-size: 12.5px; letter-spacing: .03em;
  text-transform: uppercase; }
.card .small, .note { color: var(--soft); font-size: 13px; }
.note { margin: 8px 0 0; max-width: 110ch; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 10px; }
.zero { stroke: var(--soft); stroke-width: 1; } .interval { stroke: var(--tone); stroke-width: 3.5; opacity: .55; }
.seed { fill: var(--tone); opacity: .5; } .mean { fill: var(--tone); stroke: var(--card); stroke-width: 1.5; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody tr:last-child td { border-bottom: 0; }
td.w { white-space: normal; min-width: 9em; overflow-wrap: anywhere; }
.n { text-align: right; }
figure { margin: 0 0 16px; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px; }
img { display: block; width: 100%; height: auto; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-bottom: 8px; }
summary { cursor: pointer; padding: 8px 16px; font-weight: 600; overflow-wrap: anywhere; }
summary small { color: var(--soft); font-weight: 400; }
details figure { margin: 0 12px 12px; }
li { overflow-wrap: anywhere; }
ul { margin: 0; padding: 4px 18px 12px 34px; font-size: 13.5px; }
.box { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 0 2px; }
.box h2 { margin: 0 18px 4px; } .box.warn { background: var(--warnpaper); border-color: var(--warn); }
@media print { body { background: #fff; } .card, figure, details { break-inside: avoid; } }
"""
