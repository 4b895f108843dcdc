//! kubectl's tables: upper-case headers, three spaces between columns, no borders.

/// Spaces between columns.
const GAP: usize = 3;

/// A table that remembers its widths, so that rows that come later line up.
#[derive(Clone, Debug, Default)]
pub struct Table {
    headers: Vec<String>,
    widths: Vec<usize>,
}

impl Table {
    /// A table with these headers.
    pub fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Self {
        let headers: Vec<String> = headers.into_iter().map(Into::into).collect();
        let widths = headers.iter().map(|h| h.chars().count()).collect();
        Table { headers, widths }
    }

    /// The rows, with the header above unless left out.
    pub fn render(&mut self, rows: &[Vec<String>], header: bool) -> String {
        if !header {
            self.widths = vec![0; self.headers.len()];
        }
        self.more(rows, header)
    }

    /// Further rows, at least as wide as those before.
    pub fn more(&mut self, rows: &[Vec<String>], header: bool) -> String {
        for row in rows {
            for (w, cell) in self.widths.iter_mut().zip(row) {
                *w = (*w).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        if header {
            let headers = self.headers.clone();
            self.line(&headers, &mut out);
        }
        for row in rows {
            self.line(row, &mut out);
        }
        out
    }

    fn line(&self, cells: &[String], out: &mut String) {
        for (i, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if i + 1 < cells.len() {
                let width = self.widths.get(i).copied().unwrap_or(0);
                out.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + GAP));
            }
        }
        out.push('\n');
    }
}

/// A whole table in one go.
pub fn render<S: Into<String>>(headers: impl IntoIterator<Item = S>, rows: &[Vec<String>]) -> String {
    Table::new(headers).render(rows, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|c| (*c).to_owned()).collect()
    }

    #[test]
    fn exact() {
        let rows = [row(&["web-1", "1/1"]), row(&["a-much-longer-name", "0/1"])];
        assert_eq!(
            render(["NAME", "READY"], &rows),
            "NAME                 READY\nweb-1                1/1\na-much-longer-name   0/1\n"
        );
        let mut t = Table::new(["A", "B"]);
        assert_eq!(t.render(&[row(&["xx", "y"])], false), "xx   y\n");
        assert_eq!(t.more(&[row(&["z", "y"])], false), "z    y\n");
    }
}
