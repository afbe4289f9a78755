//! The tables, one function each.

mod backlog;
mod fleet;
mod random;
mod sample;
mod storm;
mod units;

pub use fleet::Load;

/// All tables, as docs/SCALE.md has them.
pub fn print(load: &Load) -> String {
    let parts: [(&str, String); 8] = [
        ("Unit costs", units::table(units::MEASURED)),
        ("Assumptions", units::table(units::ASSUMED)),
        ("Weights", fleet::weights()),
        ("Nodes", fleet::nodes(load)),
        ("Bus", fleet::bus(load)),
        ("Database", fleet::database(load)),
        ("What breaks first", fleet::limits(load)),
        ("Faults, simulated", format!("{}\n{}", storm::table(load), backlog::table(load))),
    ];
    parts.map(|(name, table)| format!("### {name}\n\n{table}\n")).concat()
}

/// A table in Markdown: names of columns, and rows of as many cells.
fn markdown(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = line(columns.iter().map(|name| (*name).to_owned()).collect());
    let rule = format!("|{}\n", "---|".repeat(columns.len()));
    rows.into_iter().fold(head + &rule, |all, row| all + &line(row))
}

/// A number as people read it: three digits that count, thousands apart.
fn number(value: f64) -> String {
    let rounded = match value {
        v if v >= 1000.0 => {
            let step = 10_f64.powi(v.log10().floor() as i32 - 2);
            (v / step).round() * step
        }
        v => v,
    };
    let text = match rounded {
        v if v >= 100.0 || v.fract().abs() < 1e-9 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), ""), |(whole, fraction)| (whole, fraction));
    let digits: Vec<char> = whole.chars().collect();
    let apart = |(n, digit): (usize, &char)| {
        let comma = n > 0 && (digits.len() - n).is_multiple_of(3);
        if comma { format!(",{digit}") } else { digit.to_string() }
    };
    let whole: String = digits.iter().enumerate().map(apart).collect();
    if fraction.is_empty() { whole } else { format!("{whole}.{fraction}") }
}

/// Bytes with a unit.
fn bytes(value: f64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.iter().find(|(size, _)| value >= *size);
    unit.map_or_else(|| format!("{value:.0} B"), |(size, name)| format!("{} {name}", number(value / size)))
}
