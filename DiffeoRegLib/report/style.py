"""The look of the report page: light and dark, screen and paper, no outside resources."""

STYLE = """
:root { color-scheme: light dark; --paper:#ffffff; --ground:#f4f6f8; --ink:#17212b; --soft:#5c6b7a;
  --line:#dbe1e7;
  --accent:#0f6cbd; --good:#1a7f4b; --check:#a86400; --bad:#c02626; }
@media (prefers-color-scheme: dark) { :root { --paper:#1a2027; --ground:#11161b; --ink:#e6ebf0;
  --soft:#98a6b4;
  --line:#303a45; --accent:#5db0f5; --good:#4cc38a; --check:#f0b04a; --bad:#ff7b72; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:1080px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:24px; line-height:1.25; margin:0 0 2px; overflow-wrap:anywhere; }
h2 { font-size:17px; margin:0 0 4px; }
p { margin:0 0 10px; }
.soft, figcaption, .note { color:var(--soft); font-size:13.5px; }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:18px 20px;
  margin-top:16px; }
.verdict { border-left:6px solid var(--level); }
.verdict h2 { color:var(--level); font-size:19px; }
.verdict ul { margin:6px 0 0; padding-left:20px; }
.good { --level:var(--good); } .check { --level:var(--check); } .bad { --level:var(--bad); }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(140px,1fr)); gap:12px;
  margin-top:16px; }
.card { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:12px 14px; }
.card b { display:block; font-size:19px; font-weight:600; font-variant-numeric:tabular-nums; }
.card span { color:var(--soft); font-size:13px; }
.row { display:grid; grid-template-columns:150px 1fr; gap:14px; padding:12px 0;
  border-top:1px solid var(--line); }
.row:first-of-type { border-top:0; }
.row h3 { font-size:14px; margin:2px 0 2px; }
.tiles { display:grid; grid-template-columns:repeat(3,minmax(0,1fr)); gap:8px; }
.tiles.single { grid-template-columns:minmax(0,520px); }
figure { margin:0; }
.tile { position:relative; aspect-ratio:1; background:#000; border-radius:6px; overflow:hidden; }
.tile img { position:absolute; inset:0; width:100%; height:100%; object-fit:contain; }
.tile i { position:absolute; color:#ffd666; font:600 11px/1 system-ui, sans-serif; font-style:normal;
  text-shadow:0 0 3px #000, 0 0 3px #000; }
.tile .w { left:6px; top:50%; transform:translateY(-50%); } .tile .e { right:6px; top:50%;
  transform:translateY(-50%); }
.tile .n { top:6px; left:50%; transform:translateX(-50%); } .tile .s { bottom:6px; left:50%;
  transform:translateX(-50%); }
figcaption { text-align:center; padding-top:3px; font-size:12.5px; }
.swipe { --x:50%; } .swipe .top { clip-path:inset(0 0 0 var(--x)); }
.swipe .bar { position:absolute; top:0; bottom:0; left:var(--x); width:1px; background:#ffd666;
  pointer-events:none; }
.swipe input { position:absolute; inset:0; width:100%; height:100%; margin:0; opacity:0; cursor:ew-resize; }
.swipe:focus-within .tile { outline:2px solid var(--accent); }
.scale { height:12px; border-radius:3px; border:1px solid var(--line); margin:8px 0 2px;
  background:linear-gradient(90deg,rgb(33,102,214),rgb(242,242,242),rgb(205,43,43)); }
.scale.dark { background:linear-gradient(90deg,rgb(90,160,255),#000,rgb(255,112,56)); }
.ticks { display:flex; justify-content:space-between; font-size:12px; color:var(--soft); }
.key::before { content:""; display:inline-block; width:10px; height:10px; border-radius:2px;
  margin-right:6px;
  background:var(--c); border:1px solid var(--line); }
.wide { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { padding:5px 12px 5px 0; border-bottom:1px solid var(--line); text-align:right;
  vertical-align:top; }
th:first-child, td:first-child { text-align:left; } th { color:var(--soft); font-weight:500;
  font-size:13.5px; }
td.last { font-weight:600; } .plain td:last-child { text-align:left; overflow-wrap:anywhere; }
.plain td:first-child { color:var(--soft); width:240px; }
.time { display:flex; height:22px; border-radius:5px; overflow:hidden; margin:8px 0 10px; }
.time span { min-width:1px; }
.legend { display:flex; flex-wrap:wrap; gap:4px 18px; font-size:13.5px; }
details { margin-top:8px; } summary { cursor:pointer; color:var(--accent); }
ol { margin:4px 0; padding-left:22px; }
@media (max-width:720px) { .row { grid-template-columns:1fr; } }
@media print { body { background:#fff; } section, .card { break-inside:avoid; } }
"""
