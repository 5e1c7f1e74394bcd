"""The look of the page: one style sheet, light and dark by the reader's setting or choice, for screens, phones and
paper.

Colour never says anything alone: right and wrong have signs and words, marks in the plots have shapes, boxes have
solid or dashed lines and numbers.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: light-dark(#fcfcfa, #15181c); --raised: light-dark(#ffffff, #1c2025); --ink: light-dark(#1d2126, #e4e6e8);
  --soft: light-dark(#5b636d, #9aa3ad); --line: light-dark(#e1e2dd, #30363d); --wash: light-dark(#f3f3ee, #22272d);
  --own: light-dark(#1f5f99, #79b4ee); --reach: light-dark(#a9c6e2, #34567a);
  --other: light-dark(#b25a00, #f0a04b); --chance: light-dark(#7b828b, #8b949e);
  --right: light-dark(#1c6b3a, #6cc58b); --wrong: light-dark(#b3261e, #ff8a80); --partly: light-dark(#8a5a00, #e3b341);
  --warn: light-dark(#fff6dc, #2e2812); --warn-line: light-dark(#e3c465, #6b5a1e);
  --bad: light-dark(#fdf0ee, #33201f); --good: light-dark(#eef6f0, #1a2a20);
}
:root:has(#theme-light:checked) { color-scheme: light; }
:root:has(#theme-dark:checked) { color-scheme: dark; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1 {
  margin: 0; font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; text-wrap: balance;
}
h2 { margin: 0; font-size: 1.3rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; }
h3 { margin: 2rem 0 .5rem; font-size: 1rem; font-weight: 650; }
p { margin: .35rem 0; }
a { color: inherit; text-decoration-color: var(--chance); text-underline-offset: .2em; }
a:hover { text-decoration-color: currentColor; }
section { margin-top: 2.5rem; }
section + section { padding-top: 2.5rem; border-top: 1px solid var(--line); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
.status, .about, .note, .interval, .confidence, .id, footer { color: var(--soft); font-size: .875rem; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .partly { color: var(--partly); }
.banner {
  margin: 1.25rem 0 0; padding: .8rem 1rem; border: 1px solid var(--warn-line); border-radius: .5rem;
  background: var(--warn); max-width: 60rem;
}
.error { margin: 1rem 0; padding: .7rem 1rem; border-left: 3px solid var(--wrong); background: var(--bad); }
.error strong, .none strong { color: var(--wrong); }
.quarantine {
  margin: 1rem 0; padding: .7rem 1rem; border-left: 3px solid var(--partly); background: var(--wash);
  font-size: .875rem;
}
.quarantine ul { margin: .25rem 0 0; padding-left: 1.2rem; }
code, pre, .provenance td, .id { font-family: ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; }
code, pre, .provenance td { font-size: .8125rem; }
.id { font-size: .75rem; font-weight: 400; }

[hidden] { display: none !important; }
:focus-visible { outline: 2px solid var(--own); outline-offset: 2px; }
.theme {
  float: right; margin: 0 0 .5rem 1rem; padding: 0; border: 0; display: flex; flex-wrap: wrap; gap: 0 .6rem;
  color: var(--soft); font-size: .8125rem;
}
.theme legend { float: left; margin-right: .6rem; padding: 0; }
.theme label { display: flex; align-items: center; gap: .25rem; } .theme input { margin: 0; accent-color: var(--own); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.25rem 0 0; padding: 0; list-style: none; }
nav { font-size: .875rem; }

/* the verdict */
#verdict {
  margin-top: 1.25rem; padding: 1.1rem 1.25rem; border: 1px solid var(--line); border-left: .4rem solid var(--soft);
  border-radius: .5rem; background: var(--raised); color: var(--ink);
}
#verdict.wrong { border-left-color: var(--wrong); background: var(--bad); }
#verdict.right { border-left-color: var(--right); background: var(--good); }
#verdict.partly { border-left-color: var(--partly); background: var(--warn); }
#verdict h2 { font-size: 1.5rem; }
.sign { display: inline-block; margin-right: .5rem; }
#verdict.wrong .sign { color: var(--wrong); } #verdict.right .sign { color: var(--right); }
#verdict.partly .sign { color: var(--partly); }
.story h3 { margin: 1rem 0 .25rem; }
.story ul { margin: 0; padding-left: 1.2rem; } .story li { margin: .15rem 0; max-width: 60rem; }
.scrolling { overflow-x: auto; margin-top: .5rem; }
.scrolling table { font-size: .875rem; }
.scrolling :is(th, td) { white-space: nowrap; }
#verdict .scrolling :is(th, td):nth-child(-n+3) { text-align: left; }

/* tables */
table { border-collapse: collapse; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .4rem; }
th, td {
  padding: .4rem .75rem; text-align: right; vertical-align: baseline; font-weight: inherit;
  overflow-wrap: break-word;
}
th:first-child, td:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-size: .8125rem; }
thead th, tbody th, tbody td { border-bottom: 1px solid var(--line); }
.interval { display: inline-block; } b + .interval { margin-left: .15rem; }
.scores { width: 100%; margin-top: .6rem; }
.scores .name th { padding-top: 1.25rem; border: 0; }
.scores .name a { font-weight: 650; margin-right: .6rem; }
.scores .name .about { font-size: .8125rem; }
.scores b { font-weight: 500; }
.scores .headline .metric, .scores .headline .score b { font-weight: 700; }
.scores .headline .score b { font-size: 1.0625rem; }
.scores td.other b { color: var(--other); }
.scores .metric { width: 9rem; }
.scores tbody td.none { padding: .5rem .75rem; overflow-wrap: anywhere; background: var(--bad); }
.scores thead .plot { width: 26%; }

/* plots */
svg.plot { display: block; width: 100%; height: 1.25rem; overflow: visible; }
svg.plot svg { overflow: visible; }
th.plot, td.plot { padding-left: 1.75rem; padding-right: .5rem !important; vertical-align: middle; }
.axis { display: flex; justify-content: space-between; }
.axis span { width: 0; display: flex; justify-content: center; }
.track { stroke: var(--line); stroke-width: 1; }
.reach { stroke: var(--reach); stroke-width: 6; }
circle.own { fill: var(--own); }
svg.other path { fill: var(--paper); stroke: var(--other); stroke-width: 1.75; }
line.moved { stroke: var(--own); stroke-width: 1.25; }
circle.before { fill: var(--paper); stroke: var(--own); stroke-width: 1.75; }
line.chance { stroke: var(--chance); stroke-width: 1.75; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: .75rem 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .5rem; color: var(--soft); font-size: .8125rem; }
.legend svg.key { width: 1.75rem; }

/* the trend */
.trends { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: .5rem 3.5rem; }
.trends h3 { margin: 1rem 0 .4rem; } .trends h3 a { text-decoration: none; } .trends h3 .about { font-weight: 400; }
.trends .scrolling :is(th, td) { padding-left: .4rem; padding-right: .4rem; font-size: .8125rem; }
.trends .scrolling :first-child { padding-left: 0; }
.trend { position: relative; padding-left: 2.25rem; overflow: hidden; }
.trend > svg { display: block; width: 100%; overflow: visible; }
.trend svg svg { overflow: visible; }
.trend text, .ticks { fill: var(--soft); color: var(--soft); font-size: .75rem; }
.ticks span { position: absolute; left: 0; width: 1.75rem; text-align: right; transform: translateY(-50%); }
.trend .reach { stroke-width: 5; } .trend .path { stroke: var(--chance); stroke-width: 1; }
.night circle { fill: var(--own); stroke: var(--own); stroke-width: 1.75; } .night circle.open { fill: var(--paper); }
.night.fail path { stroke: var(--wrong); stroke-width: 2.5; fill: none; }

/* what folds */
summary { cursor: pointer; width: fit-content; color: var(--soft); font-size: .875rem; }
summary:hover { color: var(--ink); }
details dl {
  display: grid; grid-template-columns: fit-content(50%) minmax(0, 1fr); gap: .35rem 1rem; max-width: 52rem;
  font-size: .875rem;
}
dt { color: var(--soft); } dd { margin: 0; }
section > details { margin-top: 1.25rem; }
.breakdowns {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.25rem 3.5rem;
  align-items: start; margin: .5rem 0 1rem;
}
.breakdowns table { width: 100%; font-size: .875rem; }
.breakdowns :is(th, td):first-child { min-width: 5.5rem; }
.breakdowns caption { color: var(--ink); font-weight: 500; }
.breakdowns th, .breakdowns td { padding-top: .25rem; padding-bottom: .25rem; }
.breakdowns td:nth-child(3) { color: var(--other); }
.breakdowns td:nth-child(4) { color: var(--soft); }
.breakdowns thead .plot { width: 34%; }
.breakdowns.compared td:nth-child(-n+4) { color: inherit; } .compared td:nth-child(n+5) { color: var(--soft); }
@media (min-width: 52rem) { .compared td:nth-child(4) { white-space: nowrap; } }
.cost {
  display: grid; grid-template-columns: fit-content(50%) minmax(0, 1fr); gap: .2rem 1rem; margin: 0;
  font-size: .875rem;
}
dl.differs ul { margin: 0; padding: 0; list-style: none; }
.provenance { margin: .75rem 0; width: 100%; }
.provenance th { color: var(--soft); font-size: .8125rem; min-width: 12rem; }
.provenance td { text-align: left; overflow-wrap: anywhere; width: 100%; }
.provenance th, .provenance td { padding-top: .2rem; padding-bottom: .2rem; }
pre {
  margin: .5rem 0; padding: .75rem 1rem; background: var(--wash); border-radius: .375rem; white-space: pre-wrap;
}

/* examples */
.examples { display: grid; gap: 1.25rem; margin-top: 1rem; }
.examples.Question { grid-template-columns: repeat(auto-fill, minmax(min(100%, 12.5rem), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; background: var(--raised); overflow: hidden; }
@media (max-width: 30rem) {
  .examples.Question figure, .flips .Question {
    display: grid; grid-template-columns: min(8.5rem, 45%) minmax(0, 1fr);
  }
}
@media (min-width: 64rem) {
  .examples:not(.Question) { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media (min-width: 40rem) {
  .examples:not(.Question) figure {
    display: grid; grid-template-columns: min(15rem, 45%) minmax(0, 1fr);
  }
  .examples.Statement figure { grid-template-columns: min(20rem, 45%) minmax(0, 1fr); }
  .examples:not(.Question) .pictures { margin: .9rem 0 .9rem .9rem; }
}
#filter {
  display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin: 1rem 0 0; font-size: .875rem;
}
#filter label { display: flex; align-items: center; gap: .5rem; color: var(--soft); max-width: 100%; }
#filter :is(select, input) { min-width: 0; }
#filter output { color: var(--soft); margin-left: auto; }
select, input[type=search], button {
  font: inherit; color: var(--ink); background: var(--raised); border: 1px solid var(--chance); border-radius: .375rem;
  padding: .3rem .6rem; max-width: 100%;
}
button { margin-top: 1rem; padding: .5rem 1rem; cursor: pointer; }
.sheet { position: absolute; }
.flips {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1.25rem;
  align-items: start; margin-top: 1rem;
}
.flips figcaption > .about { font-size: .75rem; margin: 0; }
.pictures { display: flex; gap: 2px; align-items: flex-start; }
.picture { position: relative; flex: 1 1 0; overflow: hidden; background: var(--wash); }
.picture img, .picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.missing {
  position: absolute; inset: 0; display: grid; place-items: center; padding: 1rem; text-align: center;
  color: var(--soft); font-size: .8125rem;
}
figcaption { padding: .75rem .9rem .9rem; font-size: .875rem; }
.verdict { display: flex; justify-content: space-between; align-items: baseline; gap: .75rem; margin: 0; }
.verdict .id { text-align: right; }
.asked { margin: .4rem 0 .6rem; font-size: 1rem; line-height: 1.4; text-wrap: pretty; }
.answers {
  display: grid; grid-template-columns: fit-content(50%) minmax(0, 1fr); gap: .15rem .6rem; margin: 0;
  font-size: .8125rem;
}
.answers .confidence { float: right; font-size: inherit; }
.part { color: var(--soft); font-size: .8125rem; white-space: nowrap; margin-right: .25rem; }
.choices { margin: 0; padding: 0; list-style: none; }
.choices li {
  display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .75rem; padding: .3rem 0;
  border-top: 1px solid var(--line);
}
.choices div { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: .75rem; }
.mark.model, .mark.gold { font-weight: 650; }
.mark.other { color: var(--other); }
.phrase { font-weight: 600; }
sup { font-size: .7em; margin-right: .1em; line-height: 0; }

/* boxes over pictures; on them no theme applies */
.picture rect { fill: none; stroke: currentColor; stroke-width: 2; vector-effect: non-scaling-stroke; }
.picture rect.casing { stroke: #fff; stroke-width: 4; stroke-opacity: .75; }
.regions use { fill: none; stroke: #10436e; stroke-width: 1; }
.regions use.casing { stroke: #fff; stroke-width: 2.5; stroke-opacity: .5; }
.regions.many { opacity: .6; } .regions.many use.casing { stroke-width: 1.75; stroke-opacity: .35; }
.picture .region rect { stroke: #10436e; stroke-width: 1; }
.picture .region rect.casing { stroke: #fff; stroke-width: 2.5; stroke-opacity: .5; }
.picture .many .region { opacity: .6; } .picture .many .region rect.casing { stroke-width: 1.75; stroke-opacity: .35; }
.picture .gold rect:not(.casing) { stroke-dasharray: 5 4; }
.picture text {
  fill: currentColor; font-weight: 700; paint-order: stroke; stroke: #fff; stroke-width: .25em;
  stroke-linejoin: round;
}
.c0 { color: #0b62a8; } .c1 { color: #b34700; } .c2 { color: #00754f; }
.c3 { color: #a8327d; } .c4 { color: #6a4fc4; } .c5 { color: #7a5c00; }
figcaption .c0 { color: light-dark(#0b62a8, #74b9f5); } figcaption .c1 { color: light-dark(#b34700, #f79a5c); }
figcaption .c2 { color: light-dark(#00754f, #55c99f); } figcaption .c3 { color: light-dark(#a8327d, #ee8fc8); }
figcaption .c4 { color: light-dark(#6a4fc4, #b5a3f5); } figcaption .c5 { color: light-dark(#7a5c00, #d9b93f); }

/* phones: a row of the score table becomes a card */
@media screen and (max-width: 52rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  .theme { float: none; justify-content: flex-end; margin-left: 0; }
  .scores, .scores tbody, .scores caption { display: block; }
  .scores thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .scores tbody { padding: .75rem 0; border-top: 1px solid var(--line); }
  .scores tr { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .1rem .5rem; padding: .4rem 0; }
  .scores tr > :is(th, td) { padding: 0; border: 0; width: auto; text-align: left; }
  .scores :is(.metric, td.plot, td.none, .name th) { grid-column: 1 / -1; }
  .scores td[data-label] { grid-column: span 2; }
  .scores td:is(.score, .other, .earlier) { grid-column: span 3; }
  .scores:has(.earlier) td.other { grid-column: span 2; }
  .scores td.earlier .interval { display: block; margin: 0; }
  .scores .name .about { display: block; }
  .scores td.plot { padding: .25rem .5rem 0; }
  .scores tbody td.none { padding: .5rem .75rem; }
  .scores td[data-label]::before {
    content: attr(data-label); display: block; color: var(--soft); font-size: .75rem;
  }
  .axis { display: none; }
  .compared table, .compared :is(thead, tbody, caption) { display: block; }
  .compared tr { display: grid; gap: 0 .4rem; grid-template-columns: 3fr 3fr 5fr 4fr 3fr; padding: .3rem 0; }
  .compared tr > * { padding: 0; border: 0; text-align: right; min-width: 0; }
  .compared table { min-width: 0; }
  .compared tr { border-bottom: 1px solid var(--line); }
  .compared tr > :is(:first-child, td.plot) { grid-column: 1 / -1; text-align: left; font-weight: 500; }
  .compared thead .plot { display: none; } .compared td.plot { padding: 0 .5rem; }
  th, td { padding-left: .4rem; padding-right: .4rem; }
  .breakdowns :is(th, td):first-child { min-width: 4rem; } .breakdowns thead .plot { width: auto; }
  details dl { grid-template-columns: 1fr; gap: .1rem; } details dd { margin-bottom: .5rem; }
  .provenance th, .provenance td { display: block; padding: 0; border: 0; text-align: left; }
  .provenance td { padding-bottom: .4rem; }
}
@media print {
  :root { color-scheme: light !important; --paper: #fff; --raised: #fff; --wash: #f5f5f5; }
  .theme, nav, #filter, #more { display: none !important; }
  #verdict { break-inside: avoid; } .trends > div { break-inside: avoid; }
  .scrolling { overflow: visible; } .scrolling :is(th, td) { white-space: normal; padding: .2rem .4rem; }
  html { font-size: 62%; }
  body { padding: 0; max-width: none; }
  .examples:not(.Question) { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  figure, tr, .banner { break-inside: avoid; } h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
