// Closures, trait objects, collections, formatting and a recursion, as rustc -O compiles them.
use std::collections::{BTreeMap, HashMap};

trait Shape {
    fn area(&self) -> f64;
}
struct Square(f64);
impl Shape for Square {
    fn area(&self) -> f64 {
        self.0 * self.0
    }
}

#[inline(never)]
fn depth(n: u64) -> u64 {
    if n == 0 { 0 } else { std::hint::black_box(depth(n - 1)) + 1 }
}

fn main() {
    let mut sum = 0u64;
    for round in 0..20u64 {
        let mut words: Vec<String> = (0..40).map(|i| format!("{:x}-{:.3}", (i * 7919 + round) % 1009, i as f64 / 7.0)).collect();
        words.sort_by(|a, b| b.cmp(a));
        let counts: HashMap<String, usize> = words.iter().map(|w| (w.clone(), w.len())).collect();
        let tree: BTreeMap<_, _> = counts.iter().collect();
        let shapes: Vec<Box<dyn Shape>> = (0..5).map(|i| Box::new(Square(i as f64)) as Box<dyn Shape>).collect();
        sum += tree.values().map(|n| **n as u64).sum::<u64>() + depth(20) + shapes.iter().map(|s| s.area() as u64).sum::<u64>();
    }
    println!("done {}", sum);
}
