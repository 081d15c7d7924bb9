//! The result as one page that needs nothing else: figures and plots.

use plotters::prelude::*;

use super::report::{Report, Second};
use crate::fault::Fault;

const SIZE: (u32, u32) = (860, 260);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 111, 178),
    RGBColor(214, 93, 14),
    RGBColor(60, 140, 80),
    RGBColor(150, 80, 160),
    RGBColor(120, 120, 120),
    RGBColor(190, 150, 20),
];
const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
table{border-collapse:collapse}td{padding:.15rem 1rem .15rem 0;vertical-align:top}
td+td{font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}
.big{display:flex;gap:2.5rem;flex-wrap:wrap;margin:1rem 0}.big b{display:block;font-size:1.8rem}
";

/// One line of a plot: its name and a value for each second.
type Line = (String, Vec<f64>);

pub(super) fn page(report: &Report) -> Result<String, Fault> {
    let series = &report.series;
    let of = |value: fn(&Second) -> f64| series.iter().map(value).collect::<Vec<f64>>();
    let line = |name: &str, value: fn(&Second) -> f64| (name.to_owned(), of(value));
    let names: Vec<&String> = report.processes.keys().collect();
    let memory = names.iter().filter(|name| report.processes[**name].rss_bytes_max.is_some());
    let memory: Vec<Line> = memory
        .map(|name| {
            let mib = |s: &Second| s.rss_bytes.get(*name).map_or(0.0, |b| *b as f64 / 1048576.0);
            ((*name).clone(), series.iter().map(mib).collect())
        })
        .collect();
    let mut waits: Vec<_> = report.wait_events.iter().collect();
    waits.sort_by(|a, b| b.1.total_cmp(a.1));
    let waits: Vec<Line> = waits
        .iter()
        .take(COLOURS.len())
        .map(|(name, _)| {
            let n = |s: &Second| s.waits.get(*name).map_or(0.0, |n| f64::from(*n));
            ((*name).clone(), series.iter().map(n).collect())
        })
        .collect();
    let plots = [
        ("Steps per second", vec![line("steps/s", |s| s.steps_per_second)]),
        ("End to end, milliseconds", vec![line("p50", |s| s.p50_ms), line("p99", |s| s.p99_ms)]),
        ("Tasks in flight", vec![line("tasks", |s| s.in_flight as f64)]),
        ("Memory, MiB", memory),
        ("Database sessions by what they wait for", waits),
    ];
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>stepwell bench</title>\
         <style>{STYLE}</style><h1>stepwell bench: {}</h1><div class=\"big\">",
        escaped(&report.shape)
    );
    for (figure, what) in [
        (format!("{:.0}", report.steps_per_second), "steps per second"),
        (format!("{:.0}", report.tasks_per_second), "tasks per second"),
        (format!("{:.2} ms", report.hand_over.p50_ms), "hand-over p50"),
        (format!("{:.1} ms", report.p99_ms), "end to end p99"),
    ] {
        html += &format!("<div><b>{figure}</b>{what}</div>");
    }
    html += "</div><h2>Figures</h2><table>";
    for (name, value) in report.rows() {
        html += &format!("<tr><td>{}<td>{}", escaped(&name), escaped(&value));
    }
    html += "</table>";
    for (title, lines) in plots {
        html += &format!("<h2>{title}</h2>{}", plot(&lines)?);
    }
    html += "<h2>Machine</h2><table>";
    let machine = &report.machine;
    let mut facts = vec![
        ("system".to_owned(), machine.system.clone()),
        ("CPUs".to_owned(), machine.cpus.to_string()),
        ("memory".to_owned(), format!("{} MiB", machine.memory_bytes >> 20)),
        ("Postgres".to_owned(), machine.postgres.clone().unwrap_or_default()),
    ];
    facts.extend(machine.postgres_settings.clone());
    for (name, value) in facts {
        html += &format!("<tr><td>{}<td>{}", escaped(&name), escaped(&value));
    }
    html += "</table>";
    Ok(html)
}

/// Lines over the seconds of the measurement.
fn plot(lines: &[Line]) -> Result<String, Fault> {
    let mut svg = String::new();
    let drawn = draw(SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), lines);
    drawn.map_err(|error| Fault::new(format!("a plot cannot be drawn: {error}")))?;
    Ok(svg)
}

fn draw(
    area: DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let highest = lines.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
    let seconds = lines.iter().map(|(_, values)| values.len()).max().unwrap_or(0).max(2);
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(1.0..seconds as f64, 0.0..(highest * 1.1).max(1.0))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(seconds.min(10))
        .x_label_formatter(&|second| format!("{} s", short(*second)))
        .y_labels(6)
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for ((name, values), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points = values.iter().enumerate().map(|(i, value)| ((i + 1) as f64, *value));
        let style = ShapeStyle::from(colour).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(225, 225, 225))
            .draw()?;
    }
    area.present()?;
    Ok(())
}

fn short(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0} k", value / 1000.0)
    } else if value.fract().abs() < 1e-6 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
