"""The CSS of the HTML report: system fonts, one column of text, figures side by side where there is room."""

from nanoserve.report.theme import DAY, NIGHT, variables

CSS = f"""\
:root {{ color-scheme: light dark; {variables(DAY)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(NIGHT)} }} }}
@media print {{ :root {{ {variables(DAY)} }} }}
* {{ box-sizing: border-box; }}
html {{ background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 70rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }}
p {{ max-width: 46rem; margin: .4rem 0; }}
h1 {{
  font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0 0 .4rem;
  overflow-wrap: anywhere;
}}
h2 {{ font-size: 1.2rem; font-weight: 650; margin: 0 0 1rem; padding-top: .9rem; border-top: 2px solid var(--ink); }}
section {{ margin-top: 3.2rem; }}
.kind {{ color: var(--muted); font-size: .85rem; margin: 0 0 .2rem; }}
.how {{ font-size: 1.1rem; }}
.tiles {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 1.4rem 2rem;
  margin: 2.2rem 0 0;
}}
.tiles div {{ border-top: 1px solid var(--rule); padding-top: .5rem; }}
.tiles dt {{ color: var(--muted); font-size: .85rem; }}
.tiles dd {{ margin: 0; }}
.tiles b {{ display: block; font-size: 1.7rem; line-height: 1.25; font-weight: 600; letter-spacing: -.01em; }}
.tiles span {{ display: block; color: var(--muted); font-size: .8rem; line-height: 1.35; }}
.columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem 3rem; }}
.columns.narrow {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }}
.columns > div {{ min-width: 0; }}
.columns > div:only-child {{ max-width: 38rem; }}
.scroll + .columns, .note + .columns {{ margin-top: 2rem; }}
section > figcaption {{ margin-top: 1.8rem; }}
p + .columns {{ margin-top: 1.2rem; }}
ul {{ max-width: 46rem; margin: .6rem 0; padding-left: 1.2rem; font-size: .92rem; }}
a {{ color: var(--blue); }}
.contents {{ margin: 1.8rem 0 0; padding-left: 1.4rem; line-height: 1.7; }}
figure {{ margin: 0; max-width: 38rem; }}
figcaption {{ font-weight: 600; line-height: 1.35; margin-bottom: .5rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text, svg tspan {{ font-family: inherit !important; font-variant-numeric: tabular-nums; }}
.note {{ color: var(--muted); font-size: .8rem; line-height: 1.4; }}
.scroll {{ overflow-x: auto; margin: .8rem 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{
  padding: .3rem 0 .3rem 1.2rem; text-align: right; font-weight: 400; white-space: nowrap;
  vertical-align: top;
}}
th:first-child {{ padding-left: 0; text-align: left; position: sticky; left: 0; background: var(--paper); }}
thead th {{ color: var(--muted); font-size: .8rem; border-bottom: 1px solid var(--muted); }}
tbody tr + tr > * {{ border-top: 1px solid var(--rule); }}
.prose td, .prose th {{ text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 5rem; }}
.prose td:last-child {{ min-width: 14rem; color: var(--muted); }}
.swatch {{ display: inline-block; width: .7rem; height: .7rem; margin-right: .5rem; border-radius: 2px; }}
.bar {{ display: grid; grid-template-columns: 4.8rem 1fr; align-items: center; font-size: .88rem; margin: .45rem 0; }}
.bar > div {{ display: flex; height: 1.5rem; border-radius: 3px; overflow: hidden; background: var(--rule); }}
.bar:first-of-type > div {{ height: 2.4rem; }}
.words {{
  display: grid; grid-template-columns: 10rem 1fr; gap: .5rem 1.5rem; font-size: .92rem; max-width: 54rem;
  margin: 0;
}}
.words dt {{ font-weight: 600; }}
.words dd {{ margin: 0; }}
details summary {{ cursor: pointer; margin: 1rem 0; }}
pre {{
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-x: auto;
  padding: 1rem 0; margin: 0;
}}
@media (max-width: 40rem) {{
  main {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.6rem; }}
  .tiles {{ grid-template-columns: 1fr 1fr; gap: 1rem 1.2rem; }}
  .tiles b {{ font-size: 1.4rem; }}
  th, td {{ padding-left: .9rem; }}
  tbody th:first-child {{ white-space: normal; min-width: 6.5rem; }}
  .prose thead {{ display: none; }}
  .prose tr {{ display: flex; flex-wrap: wrap; gap: 0 .5rem; padding: .4rem 0; }}
  .prose tr + tr {{ border-top: 1px solid var(--rule); }}
  .prose tbody tr + tr > * {{ border: 0; }}
  .prose tbody tr > * {{ padding: 0; min-width: 0; }}
  .prose th, .prose td:last-child {{ flex: 1 0 100%; }}
  .prose td[data-column]::before {{ content: attr(data-column) ": "; color: var(--muted); }}
  .words {{ grid-template-columns: 1fr; gap: .1rem; }}
  .words dd {{ margin-bottom: .6rem; }}
}}
"""
