use super::*;

/// A row of the table in the documentation.
struct Row<'a> {
    cells: Vec<&'a str>,
    verdict: &'a str,
}

impl Row<'_> {
    fn covers(&self, failure: Failure, place: Place, seen: Seen, doubt: Doubt) -> bool {
        let values = [
            failure.as_str(),
            place.as_str(),
            seen.as_str(),
            doubt.as_str(),
        ];
        values
            .iter()
            .zip(&self.cells)
            .all(|(value, cell)| *cell == "any" || cell.split(", ").any(|word| word == *value))
    }
}

fn documented(text: &str) -> Vec<Row<'_>> {
    let table = text
        .lines()
        .skip_while(|line| !line.starts_with("| failure | place |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let rows: Vec<Row<'_>> = table
        .map(|line| {
            let mut cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 6, "{line}");
            cells.truncate(5);
            let verdict = cells.pop().unwrap();
            Row { cells, verdict }
        })
        .collect();
    assert!(rows.len() > 5, "the table is not there");
    rows
}

#[test]
fn the_documentation_says_what_the_code_does_row_by_row() {
    let text = include_str!("../../../docs/retries.md");
    let rows = documented(text);
    for failure in Failure::ALL {
        for place in Place::ALL {
            for seen in Seen::ALL {
                for doubt in Doubt::ALL {
                    let row = rows
                        .iter()
                        .filter(|row| row.covers(failure, place, seen, doubt));
                    let said: Vec<&str> = row.map(|row| row.verdict).collect();
                    let case = (failure, place, seen, doubt);
                    assert_eq!(
                        said,
                        [verdict(failure, place, seen, doubt).as_str()],
                        "{case:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_may_have_happened_never_runs_again() {
    for place in Place::ALL {
        for seen in Seen::ALL {
            for doubt in [Doubt::Write, Doubt::Unrepeatable] {
                let lost = verdict(Failure::Lost, place, seen, doubt);
                assert_ne!(lost, Verdict::Again);
                assert!(place != Place::Ending || lost != Verdict::Replay);
            }
        }
    }
}
