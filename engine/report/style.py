"""How the page looks: on a screen, on a phone, in the dark, on paper.

Colours were chosen for a contrast of at least 4.5 of text and 3 of lines on their ground (WCAG 2.2,
1.4.3 and 1.4.11; a test computes them), and differ in lightness too, so that none has to be told
by its hue.
"""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "STYLE"]

#: Colours on light ground.
LIGHT = {
    "ground": "#ffffff",
    "panel": "#f4f6f8",
    "text": "#1b2127",
    "quiet": "#56616c",
    "rule": "#d5dbe1",
    "grid": "#e3e8ec",
    "strong": "#175a8c",
    "other": "#9a4a06",
    "warn": "#fff3dc",
    "warn-edge": "#b45309",
    "warn-text": "#432500",
    "good": "#1d6b45",
}
#: Colours on dark ground.
DARK = {
    "ground": "#14191e",
    "panel": "#1c2329",
    "text": "#e7eaed",
    "quiet": "#a4afba",
    "rule": "#38424c",
    "grid": "#2a333b",
    "strong": "#7cbcea",
    "other": "#f0a761",
    "warn": "#38290f",
    "warn-edge": "#eba54a",
    "warn-text": "#ffe9c9",
    "good": "#7fd1a6",
}


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{key}:{value};" for key, value in colours.items())


# Shares shade a cell in ten steps; the darkest leaves text readable on both grounds.
_HEAT = "".join(f".h{i}{{background:rgba(52,134,196,{0.036 * i:.3f})}}" for i in range(1, 11))

STYLE = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;text-size-adjust:100%}}
body{{margin:0;background:var(--ground);color:var(--text);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,
sans-serif;
font-variant-numeric:tabular-nums lining-nums;overflow-wrap:break-word}}
.long{{overflow-wrap:anywhere}}th .long{{display:inline-block;min-width:7rem}}
.page{{max-width:64rem;margin:0 auto;padding:1.5rem clamp(1rem,4vw,2.5rem) 4rem}}
.skip{{position:absolute;left:-999rem}}
.skip:focus{{left:1rem;top:1rem;background:var(--ground);padding:.5rem}}
p,ul,ol,dl{{max-width:44rem}}
a{{color:var(--strong)}}
h1{{font-size:clamp(1.6rem,1.2rem + 2vw,2.3rem);line-height:1.2;letter-spacing:-.015em;
margin:.2rem 0 .5rem;font-weight:650}}
h2{{font-size:1.35rem;line-height:1.25;margin:0 0 .8rem;letter-spacing:-.01em;font-weight:650}}
h3{{font-size:1.05rem;margin:2rem 0 .5rem;font-weight:650}}
section{{padding-top:2.2rem;margin-top:2.6rem;border-top:1px solid var(--rule)}}
#verdict{{border-top:0;margin-top:0;padding-top:1.6rem}}
.kicker{{margin:0;color:var(--quiet);font-size:.875rem;letter-spacing:.02em}}
.kicker strong{{color:var(--text)}}
.lede{{font-size:1.125rem;line-height:1.5}}
.quiet,figcaption,.note{{color:var(--quiet);font-size:.9rem}}
.none{{color:var(--quiet)}}
.ci{{color:var(--quiet);white-space:nowrap}}
.warnings{{background:var(--warn);color:var(--warn-text);border:2px solid var(--warn-edge);
border-left-width:.6rem;border-radius:.4rem;padding:1rem 1.2rem;margin:1.2rem 0 0}}
.warnings h2{{font-size:1.15rem;margin:0 0 .4rem}}
.warnings ol{{margin:0;padding-left:1.3rem;max-width:none}}
.warnings li{{margin:.45rem 0;font-weight:550}}
.calm{{border-left:.3rem solid var(--rule);padding:.1rem 0 .1rem 1rem;color:var(--quiet)}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.2rem,1fr));gap:.8rem;
margin:1.1rem 0;padding:0}}
.tile{{background:var(--panel);border-radius:.5rem;padding:.8rem 1rem}}
.tile b{{display:block;font-size:2.3rem;line-height:1.15;font-weight:600;letter-spacing:-.02em}}
.tile .what{{display:block;font-weight:600}}
.tile .quiet{{display:block;margin-top:.2rem}}
dl.gloss{{margin:.9rem 0;padding:.1rem 0 .1rem 1rem;border-left:.2rem solid var(--rule);
font-size:.9rem;color:var(--quiet)}}
dl.gloss div{{margin:.3rem 0}}
dl.gloss dt{{display:inline;font-weight:650;color:var(--text)}}
dl.gloss dt::after{{content:":"}}
dl.gloss dd{{display:inline;margin:0}}
.open{{border:1px dashed var(--quiet);border-radius:.4rem;padding:.7rem 1rem}}
.open b,.todo{{color:var(--other);font-weight:650}}
.done{{color:var(--good);font-weight:650}}
nav ul{{columns:16rem auto;column-gap:2rem;list-style:none;padding:0;margin:.6rem 0 0;
max-width:none}}
nav li{{padding:.22rem 0;break-inside:avoid}}
nav{{margin-top:2rem}}
nav h2{{font-size:1rem;margin:0}}
figure{{margin:1.4rem 0}}
figcaption{{margin-bottom:.5rem;max-width:44rem}}
figcaption b,figcaption strong{{color:var(--text)}}
.scroll{{overflow-x:auto;max-width:100%}}
.scroll:focus-visible{{outline:2px solid var(--strong);outline-offset:2px}}
table{{border-collapse:collapse;font-size:.92rem;line-height:1.4}}
th,td{{padding:.42rem .9rem .42rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--rule);font-weight:400}}
th:last-child,td:last-child{{padding-right:.2rem}}
thead th{{color:var(--quiet);font-size:.85rem;vertical-align:bottom;
border-bottom:1.5px solid var(--quiet)}}
tbody th{{font-weight:600;min-width:6.5rem;max-width:18rem}}
td.n,th.n{{text-align:right}}
td.n{{white-space:nowrap}}
td.n .ci{{display:block;font-size:.85em}}
table.facts th{{width:12rem;min-width:7rem;color:var(--quiet);font-weight:400}}
table.facts,table.ladder,table.list{{width:100%}}
table.facts{{max-width:52rem}}
table.ladder{{max-width:46rem}}
table.facts td{{overflow-wrap:anywhere}}
table.ladder td.plot{{width:44%;padding:0 .6rem 0 0;vertical-align:middle;height:3.2rem;
line-height:0}}
table.ladder tr>*{{border-bottom:0;padding-top:.25rem;padding-bottom:.25rem;
vertical-align:middle}}
table.ladder td.plot{{padding-top:0;padding-bottom:0}}
table.ladder tbody tr.axis>*{{border-top:1px solid var(--quiet);vertical-align:top;height:auto}}
table.ladder tbody th{{min-width:5.5rem}}
table.ladder tbody th .quiet{{display:block;font-weight:400}}
table.ladder td.n{{white-space:normal;min-width:6.2rem}}
table.matrix{{text-align:right}}
table.matrix td,table.matrix thead th{{padding:.4rem .6rem;text-align:right;white-space:nowrap}}
table.matrix thead th:first-child{{text-align:left;padding-left:.2rem}}
table.list tbody th{{min-width:2.3rem;width:2.6rem}}
table.matrix thead .long{{white-space:normal}}
table.matrix td .people{{white-space:normal}}
table.matrix tbody th{{padding-left:.2rem}}
table.matrix td.d{{outline:2px solid var(--strong);outline-offset:-2px;font-weight:650}}
table.matrix td .quiet,table.matrix td .ci{{display:block;font-weight:400;font-size:.85em;
color:var(--text)}}
table.small td,table.small thead th{{padding:.3rem .4rem;font-size:.82rem}}
{_HEAT}
.grid{{display:grid;gap:1.4rem 1.2rem;
grid-template-columns:repeat(auto-fill,minmax(min(16.5rem,100%),1fr));
margin:1rem 0}}
.grid.many{{grid-template-columns:repeat(auto-fill,minmax(min(10rem,46%),1fr))}}
.grid figure{{margin:0;max-width:20rem}}
.grid figcaption{{line-height:1.35;margin-bottom:.3rem;min-height:2.7em;display:flex;
flex-direction:column;
justify-content:flex-end}}
.grid figcaption b{{font-weight:600}}
.chart svg{{display:block;width:100%;height:auto}}
.chart.one svg{{max-width:34rem}}
svg.iv{{overflow:visible;display:block}}
svg text{{font-size:11.5px;fill:var(--quiet);font-family:inherit}}
.grid.many svg text{{font-size:15px}}
svg .m{{text-anchor:middle}}svg .e{{text-anchor:end}}svg .s{{text-anchor:start;fill:var(--text)}}
svg .gr{{stroke:var(--grid);fill:none;stroke-width:1}}
svg .tk{{stroke:var(--quiet);fill:none;stroke-width:1}}
svg .ref{{stroke:var(--quiet);fill:none;stroke-width:1;stroke-dasharray:3 3}}
svg .band{{fill:var(--strong);opacity:.17}}
svg .shade{{fill:var(--strong);opacity:.13}}
svg .line{{stroke:var(--strong);fill:none;stroke-width:2;stroke-linejoin:round}}
svg .line.faint{{stroke-width:1;opacity:.55}}
svg .line.second{{stroke:var(--other);stroke-dasharray:6 4}}
svg .pt{{fill:var(--strong);stroke:var(--ground);stroke-width:1.5}}
svg .pt.second{{fill:var(--other)}}
svg .err{{stroke:var(--strong);fill:none;stroke-width:1.5}}
svg .err.second{{stroke:var(--other)}}
svg .bar{{fill:var(--quiet)}}
svg .bar-h{{fill:var(--strong);opacity:.75}}
svg line.iv-h{{stroke:var(--strong);stroke-width:3}}
svg circle.iv-h{{fill:var(--strong);stroke:var(--ground);stroke-width:1.5}}
svg line.iv-o{{stroke:var(--other);stroke-width:2}}
svg rect.iv-o{{fill:var(--ground);stroke:var(--other);stroke-width:2}}
code{{font-family:ui-monospace,"Cascadia Mono",Consolas,"Liberation Mono",monospace;
font-size:.88em}}
code.digest{{word-break:break-all}}
footer{{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--rule)}}
@media (max-width:30rem){{
th,td{{padding-right:.6rem}}
table.facts th{{width:38%}}
table.ladder td.plot{{width:38%}}
.warnings{{padding:.9rem 1rem}}
section{{padding-top:1.8rem;margin-top:2rem}}
}}
@page{{size:A4;margin:16mm 15mm}}
@media print{{
:root{{{_variables(LIGHT)}--text:#000;--quiet:#3d4650;--panel:#fff}}
html{{font-size:9.6pt}}
body{{background:#fff;-webkit-print-color-adjust:exact;print-color-adjust:exact}}
.page{{max-width:none;padding:0}}
.skip,nav{{display:none}}
section{{margin-top:1.4rem;padding-top:1rem}}
h1,h2,h3,figcaption,.note{{break-after:avoid;break-inside:avoid}}
p{{orphans:3;widows:3}}
.chart,.tile,.warnings li,tr,dl.gloss,.open,table.ladder,table.matrix{{break-inside:avoid}}
.tile{{border:1px solid var(--rule)}}
.grid{{grid-template-columns:repeat(3,1fr)}}
.grid.many{{grid-template-columns:repeat(4,1fr)}}
.scroll{{overflow:visible}}
.chart.one svg{{max-width:24rem}}
table.broad{{font-size:.85rem}}
table.broad th,table.broad td{{padding-right:.45rem}}
table.small td,table.small thead th{{font-size:6pt;padding:.15rem}}
thead{{display:table-header-group}}
tbody th{{min-width:0}}
a{{color:#000;text-decoration:underline}}
}}
"""
