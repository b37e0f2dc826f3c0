use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::*;

/// The value of a line that begins with this name and these labels.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

fn labels(user: &str) -> PoolLabels {
    PoolLabels { database: "app".into(), user: user.into(), server: "db:5432".into() }
}

#[test]
fn a_client_counts_for_as_long_as_it_lives() {
    let metrics = Metrics::new();
    let series = "pgherd_clients{database=\"app\",user=\"ann\"}";
    let first = metrics.client("app", "ann");
    let second = metrics.client("app", "ann");
    assert_eq!(value(&metrics.encode().expect("text"), series), Some(2.0));
    drop(first);
    assert_eq!(value(&metrics.encode().expect("text"), series), Some(1.0));
    drop(second);
    let text = metrics.encode().expect("text");
    assert_eq!(value(&text, series), Some(0.0));
    assert_eq!(value(&text, "pgherd_logins_total{database=\"app\",user=\"ann\"}"), Some(2.0));
}

#[test]
fn pools_show_their_figures_and_are_forgotten() {
    let metrics = Metrics::new();
    let pool = metrics.pool(labels("ann"));
    pool.max.set(10);
    pool.idle.set(3);
    pool.connects.inc();
    pool.wait.observe(Duration::from_millis(3));
    pool.closed("lifetime");
    let text = metrics.encode().expect("text");
    let of = |name: &str| value(&text, &format!("pgherd_{name}{{database=\"app\",user=\"ann\",server=\"db:5432\"}}"));
    assert_eq!(of("pool_max_connections"), Some(10.0));
    assert_eq!(of("pool_idle_connections"), Some(3.0));
    assert_eq!(of("pool_connects_total"), Some(1.0));
    assert_eq!(of("pool_wait_seconds_count"), Some(1.0));
    assert!(
        text.contains(
            "pgherd_pool_closes_total{database=\"app\",user=\"ann\",server=\"db:5432\",reason=\"lifetime\"} 1"
        )
    );
    let bucket = "pgherd_pool_wait_seconds_bucket{le=\"0.005\",database=\"app\",user=\"ann\",server=\"db:5432\"}";
    assert_eq!(value(&text, bucket), Some(1.0), "{text}");

    metrics.remove_pool(&labels("ann"));
    let text = metrics.encode().expect("text");
    assert!(!text.contains("pgherd_pool_idle_connections{"));
    assert!(text.contains("pgherd_pool_connects_total{"));
}

#[test]
fn statements_count_by_plan() {
    let metrics = Metrics::new();
    let database = metrics.database("app");
    for plan in PlanClass::ALL {
        for _ in 0..=plan as usize {
            database.statement(plan, Duration::from_micros(700));
        }
    }
    database.bytes_out.inc_by(99);
    let text = metrics.encode().expect("text");
    for plan in PlanClass::ALL {
        let series = format!("pgherd_statements_total{{database=\"app\",plan=\"{}\"}}", plan.label());
        assert_eq!(value(&text, &series), Some((plan as usize + 1) as f64), "{series}");
    }
    assert_eq!(value(&text, "pgherd_client_sent_bytes_total{database=\"app\"}"), Some(99.0));
    assert!(Arc::ptr_eq(&database, &database) && metrics.database("app").statements(PlanClass::Replica) == 2);
}

#[test]
fn a_cache_is_read_at_each_scrape() {
    let metrics = Metrics::new();
    assert!(!metrics.encode().expect("text").contains("pgherd_cache"));
    let hits = Arc::new(AtomicU64::new(1));
    let seen = hits.clone();
    let read = move || {
        let hits_memory = seen.load(Relaxed);
        (hits_memory > 0).then(|| CacheSnapshot {
            hits_memory,
            bytes: 4096,
            bypass_doubt: 3,
            saved_us: 2_500_000,
            rejected_cheap: 5,
            audits_different: 1,
            ..CacheSnapshot::default()
        })
    };
    metrics.register_cache("app", Box::new(read));
    hits.store(7, Relaxed);
    let text = metrics.encode().expect("text");
    assert_eq!(value(&text, "pgherd_cache_hits_total{cache=\"app\",tier=\"memory\"}"), Some(7.0), "{text}");
    assert_eq!(value(&text, "pgherd_cache_hits_total{cache=\"app\",tier=\"redis\"}"), Some(0.0));
    assert_eq!(value(&text, "pgherd_cache_memory_bytes{cache=\"app\"}"), Some(4096.0));
    assert_eq!(value(&text, "pgherd_cache_bypasses_total{cache=\"app\",reason=\"doubt\"}"), Some(3.0));
    assert_eq!(value(&text, "pgherd_cache_saved_seconds_total{cache=\"app\"}"), Some(2.5), "{text}");
    assert_eq!(value(&text, "pgherd_cache_stores_rejected_total{cache=\"app\",reason=\"cheap\"}"), Some(5.0));
    assert_eq!(value(&text, "pgherd_cache_audits_total{cache=\"app\",reason=\"different\"}"), Some(1.0));
    assert_eq!(text.matches("# TYPE pgherd_cache_hits counter").count(), 1);
    hits.store(0, Relaxed);
    assert!(!metrics.encode().expect("text").contains("pgherd_cache"));
}

#[test]
fn errors_refusals_pins_and_reloads_count_by_their_label() {
    let metrics = Metrics::new();
    metrics.error(ErrorKind::Pool);
    metrics.refusal("distinct-on");
    metrics.pin("listen");
    metrics.client_rejected("auth");
    metrics.reload(false);
    let text = metrics.encode().expect("text");
    for series in [
        "pgherd_errors_total{kind=\"pool\"}",
        "pgherd_refusals_total{code=\"distinct-on\"}",
        "pgherd_pins_total{reason=\"listen\"}",
        "pgherd_clients_rejected_total{reason=\"auth\"}",
        "pgherd_config_reloads_total{result=\"refused\"}",
    ] {
        assert_eq!(value(&text, series), Some(1.0), "{series}\n{text}");
    }
    assert_eq!(value(&text, "pgherd_config_last_reload_successful"), Some(0.0));
    assert!(text.contains(&format!("pgherd_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn labels_cannot_break_out_of_their_quotes() {
    let metrics = Metrics::new();
    let _client = metrics.client("a\"b\\c\nd", "u");
    let text = metrics.encode().expect("text");
    assert!(text.contains(r#"database="a\"b\\c\nd""#), "{text}");
}
