//! The last 15 minutes.

use std::time::SystemTime;

use serde::Serialize;

use super::{milliseconds, seconds};
use crate::http::api::PoolName;
use crate::status::timeline::{Point, Quantiles, STEP, Timeline};

/// One second.
#[derive(Debug, Serialize)]
pub(in crate::http) struct PointView {
    statements: f32,
    transactions: f32,
    errors: f32,
    p50: Option<f32>,
    p95: Option<f32>,
    p99: Option<f32>,
    wait: f32,
    waiting: u32,
    in_use: u32,
}

impl PointView {
    pub(super) fn of(point: &Point) -> Self {
        let latency = |of: fn(Quantiles) -> f32| point.latency.map(of);
        Self {
            statements: point.statements,
            transactions: point.transactions,
            errors: point.errors,
            p50: latency(|latency| latency.p50),
            p95: latency(|latency| latency.p95),
            p99: latency(|latency| latency.p99),
            wait: point.wait,
            waiting: point.waiting,
            in_use: point.in_use,
        }
    }
}

/// The points, oldest first, in a list for each series.
#[derive(Debug, Serialize)]
pub(in crate::http) struct History {
    /// Number of the last one.
    point: u64,
    time: u64,
    /// Seconds from one to the next.
    step: f64,
    statements: Vec<f32>,
    transactions: Vec<f32>,
    errors: Vec<f32>,
    p50: Vec<Option<f32>>,
    p95: Vec<Option<f32>>,
    p99: Vec<Option<f32>>,
    wait: Vec<f32>,
    waiting: Vec<u32>,
    in_use: Vec<u32>,
}

impl History {
    /// Of the whole, or of a pool; none if that has no points.
    pub(in crate::http) fn new(timeline: &Timeline, of: Option<&PoolName>) -> Option<Self> {
        let points: Vec<PointView> = match of {
            None => timeline.whole().map(PointView::of).collect(),
            Some(PoolName { database, user }) => {
                let points = timeline.of_pool(database, user)?;
                points.map(PointView::of).collect()
            }
        };
        Some(Self {
            point: timeline.count(),
            time: milliseconds(SystemTime::now()),
            step: seconds(STEP),
            statements: points.iter().map(|point| point.statements).collect(),
            transactions: points.iter().map(|point| point.transactions).collect(),
            errors: points.iter().map(|point| point.errors).collect(),
            p50: points.iter().map(|point| point.p50).collect(),
            p95: points.iter().map(|point| point.p95).collect(),
            p99: points.iter().map(|point| point.p99).collect(),
            wait: points.iter().map(|point| point.wait).collect(),
            waiting: points.iter().map(|point| point.waiting).collect(),
            in_use: points.iter().map(|point| point.in_use).collect(),
        })
    }
}
