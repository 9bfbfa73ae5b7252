#include "tools/report/style.h"

namespace eigentrace {
namespace {

// Series colours are told apart by people who see red and green alike, and keep 3:1 contrast on both
// backgrounds.
constexpr const char* colours = R"(
:root{color-scheme:light dark;--page:#f6f7f9;--paper:#fff;--ink:#1a1f27;--soft:#5a6473;--rule:#e3e7ec;--grid:#eceff3;
--axis:#b4bcc8;--initial:#8c96a5;--trained:#3355d8;--cold:#1f6fb5;--dot:.38;--hot:#d1402f;
--s0:#3355d8;--s1:#d9680f;--s2:#0b8f78;--s3:#b8358c;--s4:#7a8b13;--s5:#2597c9;--s6:#8a5a3b;--s7:#6a4fc0}
@media screen and (prefers-color-scheme:dark){:root{--page:#0e1116;--paper:#161b22;--ink:#e5e9ef;--soft:#98a3b3;
--rule:#2a323d;--grid:#222934;--axis:#4b5666;--initial:#8692a3;--trained:#7f9bff;--cold:#4aa3ea;--dot:.55;--hot:#ff6f5c;
--s0:#7f9bff;--s1:#ff9d4d;--s2:#3ccbb0;--s3:#f07cc6;--s4:#bccb4e;--s5:#63c6f2;--s6:#c99878;--s7:#ab93ff}}
)";

constexpr const char* charts = R"(
.chart{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.chart text{fill:var(--ink)}.chart .tick{font-size:10.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .label{font-size:11px;fill:var(--soft)}.chart .panel{font-size:11.5px;font-weight:600}
.chart-title{font-size:14px;font-weight:600}.chart .paper{fill:var(--paper)}
.chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--axis)}
.chart .reference{stroke:var(--soft);stroke-dasharray:4 3;fill:none}.chart .unit{stroke:var(--soft);fill:none;stroke-width:1.1}
.chart .frame{fill:none;stroke:var(--rule)}
.chart .curve{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .faint{fill:none;stroke:var(--c);stroke-width:1.2;stroke-opacity:.42;stroke-linejoin:round}
.chart .dot{fill:var(--c);fill-opacity:var(--dot)}.chart .solid{fill-opacity:1}.chart .mark{fill:var(--c)}
.chart .dot:hover,.chart .mark:hover{fill-opacity:1;stroke:var(--ink);stroke-width:1.5}
.chart .target{fill:var(--c);fill-opacity:0}.chart .target:hover{fill-opacity:1}
.chart .beyond{fill:var(--paper);stroke:var(--c);stroke-width:1.2}
.chart .halo{stroke:var(--paper);stroke-width:4;fill:none;stroke-linejoin:round}
.chart .bar{fill:var(--c)}.chart .bar:hover{fill-opacity:.8}.chart .whisker{stroke:var(--ink);stroke-opacity:.65;stroke-width:1.1}
.chart .cold{fill:var(--cold)}.chart .hot{fill:var(--hot)}.chart .none{fill:var(--grid)}
.chart .cold:hover,.chart .hot:hover{stroke:var(--ink)}
.initial{--c:var(--initial)}.trained{--c:var(--trained)}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}
.s4{--c:var(--s4)}.s5{--c:var(--s5)}.s6{--c:var(--s6)}.s7{--c:var(--s7)}
)";

constexpr const char* page = R"(
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;font-size:15px;-webkit-text-size-adjust:100%;
font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main,footer{max-width:1380px;margin:0 auto;padding:0 28px}
header{padding-top:44px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 6px}
h2{font-size:21px;letter-spacing:-.01em;margin:52px 0 14px;display:flex;align-items:center;gap:10px}
h3{font-size:16px;margin:30px 0 10px}
p{margin:0 0 14px;max-width:72ch}.lead,.note{color:var(--soft)}.note{font-size:13.5px}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin:14px 0 0;font-size:14px}
a{color:inherit;text-decoration-color:var(--axis);text-underline-offset:3px}a:hover{text-decoration-color:var(--ink)}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--c);flex:none}
nav .swatch{margin-right:8px}.name{display:flex;gap:8px;align-items:baseline}.name .swatch{position:relative;top:1px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:18px}
.figures.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,370px),1fr))}
figure{margin:0;background:var(--paper);border:1px solid var(--rule);border-radius:12px;padding:14px 14px 8px;min-width:0}
figcaption{font-size:13.5px;font-weight:600;margin:0 2px 6px}
figcaption span{display:block;font-weight:400;color:var(--soft);font-size:12.5px}
svg.chart{display:block;width:100%;max-width:560px;height:auto;margin:0 auto}
.table{overflow-x:auto;background:var(--paper);border:1px solid var(--rule);border-radius:12px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:9px 16px;text-align:right;white-space:nowrap;border-top:1px solid var(--rule)}
thead th{border-top:0;font-weight:600;color:var(--soft);font-size:12.5px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
tbody th{font-weight:600}td .from{color:var(--soft)}td .to{font-weight:600}td.gone{color:var(--soft)}
details{margin:18px 0 0;background:var(--paper);border:1px solid var(--rule);border-radius:12px}
summary{cursor:pointer;padding:11px 16px;font-weight:600;font-size:13.5px}
pre{margin:0;padding:4px 16px 16px;overflow-x:auto;font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.slider{display:none;gap:12px;align-items:center;margin:2px 2px 8px;font-size:12.5px}
.slider input{flex:1;min-width:0;accent-color:var(--trained)}.slider output{min-width:76px;text-align:right;font-variant-numeric:tabular-nums}
.live .slider{display:flex}.live .moment{display:none}.live .moment.now{display:block}.live .at{display:none}
.at{margin:8px 2px 2px;font-size:12.5px;color:var(--soft)}.table.after{margin-top:18px}
footer{color:var(--soft);font-size:12.5px;padding-top:44px;padding-bottom:36px}
@media(max-width:640px){header,main,footer{padding-left:14px;padding-right:14px}header{padding-top:26px}h1{font-size:24px}
h2{margin-top:40px}figure{padding:12px 8px 6px}.figures{gap:12px}th,td{padding:8px 12px}
th:first-child,td:first-child{white-space:normal;min-width:118px;max-width:46vw;overflow-wrap:break-word}}
@media print{body{background:#fff;font-size:11pt}header,main,footer{max-width:none;padding-left:0;padding-right:0}nav{display:none}
.figures,.figures.three{grid-template-columns:1fr 1fr;gap:10px}figure,.table{break-inside:avoid;border-color:#ccc}h2,h3{break-after:avoid}
.moments figcaption span,.slider,.live .slider,.moment,.live .moment.now{display:none}
.moment:first-of-type,.moment:last-of-type,.live .moment:first-of-type,.live .moment:last-of-type,.live .at{display:block}
.table{overflow:visible}table{font-size:8.5pt}th,td{padding:4px 6px}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
)";

}  // namespace

std::string chart_style() { return std::string(colours) + charts; }
std::string page_style() { return chart_style() + page; }

}  // namespace eigentrace
