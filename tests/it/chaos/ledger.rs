//! What was written, as the writers know it, and whether the table agrees.

use std::collections::HashMap;
use std::sync::Mutex;

use pgweir::demo::cluster::Server;

use super::scene::Findings;

/// What a writer knows of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What could commit it was never sent, or the server said that it did not happen.
    Refused,
    /// What could commit it was sent, and no answer came.
    Unknown,
    /// The server has acknowledged it.
    Committed,
}

/// Rows that one transaction writes: all are there or none.
#[derive(Clone, Copy, Debug)]
struct Batch {
    rows: u32,
    fate: Fate,
}

/// A client's own counter: increments of each fate.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    committed: u64,
    unknown: u64,
}

/// See the module.
pub struct Ledger {
    batches: Mutex<Vec<Batch>>,
    counters: Mutex<Vec<Counter>>,
}

impl Ledger {
    pub fn new(clients: usize) -> Self {
        Self {
            batches: Mutex::default(),
            counters: Mutex::new(vec![Counter::default(); clients]),
        }
    }

    /// A batch that nothing was sent of; returns its number.
    pub fn begin(&self, rows: u32) -> usize {
        let mut batches = self.batches.lock().unwrap();
        batches.push(Batch {
            rows,
            fate: Fate::Refused,
        });
        batches.len() - 1
    }

    pub fn set(&self, batch: usize, fate: Fate) {
        self.batches.lock().unwrap()[batch].fate = fate;
    }

    /// The text that writes it.
    pub fn insert(batch: usize, rows: u32) -> String {
        format!("INSERT INTO ledger SELECT {batch}, n FROM generate_series(1, {rows}) AS n")
    }

    /// The data that writes it by COPY.
    pub fn copied(batch: usize, rows: u32) -> String {
        let lines: Vec<String> = (1..=rows).map(|n| format!("{batch}\t{n}\n")).collect();
        lines.concat()
    }

    /// An increment of a client's counter is about to be sent.
    pub fn increment(&self, client: usize) {
        self.counters.lock().unwrap()[client].unknown += 1;
    }

    /// It is known what became of it.
    pub fn settle_increment(&self, client: usize, is_committed: bool) {
        let counter = &mut self.counters.lock().unwrap()[client];
        counter.unknown -= 1;
        counter.committed += u64::from(is_committed);
    }

    /// What its counter may be now.
    pub fn bounds(&self, client: usize) -> (u64, u64) {
        let counter = self.counters.lock().unwrap()[client];
        (counter.committed, counter.committed + counter.unknown)
    }

    /// Batches committed, refused, unknown.
    pub fn totals(&self) -> [usize; 3] {
        let batches = self.batches.lock().unwrap();
        let of = |fate| batches.iter().filter(|batch| batch.fate == fate).count();
        [of(Fate::Committed), of(Fate::Refused), of(Fate::Unknown)]
    }

    /// Compares with what is in the tables.
    pub fn check(&self, server: &Server, findings: &Findings) {
        let sql = "SELECT batch, count(*), count(DISTINCT n) FROM ledger GROUP BY batch";
        let lines = server.sql("postgres", sql).unwrap();
        let mut there: HashMap<usize, (u32, u32)> = HashMap::new();
        for line in lines.lines() {
            let mut numbers = line.split('|').map(|text| text.parse::<usize>().unwrap());
            let batch = numbers.next().unwrap();
            let mut number = || u32::try_from(numbers.next().unwrap()).unwrap();
            there.insert(batch, (number(), number()));
        }
        let batches = self.batches.lock().unwrap();
        for (number, batch) in batches.iter().enumerate() {
            let found = there.remove(&number);
            let whole = Some((batch.rows, batch.rows));
            let is_right = match batch.fate {
                Fate::Committed => found == whole,
                Fate::Refused => found.is_none(),
                Fate::Unknown => found.is_none() || found == whole,
            };
            if !is_right {
                findings.add(format!(
                    "batch {number}, {batch:?}: rows and different rows in the table: {found:?}"
                ));
            }
        }
        if !there.is_empty() {
            findings.add(format!("batches that nobody wrote: {there:?}"));
        }
        let counters = server
            .sql("postgres", "SELECT client, n FROM counters")
            .unwrap();
        for line in counters.lines() {
            let (client, n) = line.split_once('|').unwrap();
            let (client, n): (usize, u64) = (client.parse().unwrap(), n.parse().unwrap());
            let (least, most) = self.bounds(client);
            if !(least..=most).contains(&n) {
                findings.add(format!(
                    "counter of client {client}: {n}, not {least} to {most}"
                ));
            }
        }
    }
}
