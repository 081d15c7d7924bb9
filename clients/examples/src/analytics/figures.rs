//! What is computed: figures of customers and of products from the extracts, and insights from both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkout::Money;

/// How many customers and products are the top.
const TOP: usize = 3;

#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    user_id: u64,
    product_id: u64,
    amount: Money,
    status: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct User {
    user_id: u64,
    name: String,
    segment: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Product {
    product_id: u64,
    name: String,
    category: String,
}

/// The result of `transform_customer_metrics`: users without orders are left out.
#[derive(Serialize, Deserialize)]
pub(super) struct Customers {
    customers: Vec<Customer>,
}

#[derive(Serialize, Deserialize)]
struct Customer {
    user_id: u64,
    name: String,
    segment: String,
    total_orders: usize,
    completed_orders: usize,
    revenue: Money,
    /// Of the completed ones.
    average_order: Money,
}

/// The result of `transform_product_metrics`: products without orders are left out.
#[derive(Serialize, Deserialize)]
pub(super) struct Products {
    products: Vec<Sold>,
}

#[derive(Serialize, Deserialize)]
struct Sold {
    product_id: u64,
    name: String,
    category: String,
    total_orders: usize,
    completed_orders: usize,
    revenue: Money,
    /// How many of the orders are completed, in hundredths.
    conversion: usize,
}

/// The result of `generate_insights`.
#[derive(Serialize, Deserialize)]
pub(super) struct Insights {
    pub(super) total_revenue: Money,
    top_customers: Vec<Top>,
    top_products: Vec<Top>,
    /// Customers of each segment.
    segments: BTreeMap<String, usize>,
    /// Revenue of each category.
    categories: BTreeMap<String, Money>,
}

#[derive(Serialize, Deserialize)]
struct Top {
    id: u64,
    name: String,
    revenue: Money,
}

/// Of some orders: how many, how many completed, and what those brought in.
fn tally<'o>(orders: impl Iterator<Item = &'o Order>) -> (usize, usize, Money) {
    orders.fold((0, 0, Money::default()), |(all, completed, revenue), order| {
        match order.status.as_str() {
            "completed" => (all + 1, completed + 1, revenue + order.amount),
            _ => (all + 1, completed, revenue),
        }
    })
}

/// An n-th of an amount, rounded to the cent, halves up; nothing if there is none to divide by.
fn average(amount: Money, n: usize) -> Money {
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    Money::of_cents((amount.cents() + n / 2).checked_div(n).unwrap_or_default())
}

impl Customers {
    pub(super) fn of(orders: &[Order], users: Vec<User>) -> Self {
        let customers = users.into_iter().map(|User { user_id, name, segment }| {
            let (total_orders, completed_orders, revenue) =
                tally(orders.iter().filter(|order| order.user_id == user_id));
            let average_order = average(revenue, completed_orders);
            Customer {
                user_id,
                name,
                segment,
                total_orders,
                completed_orders,
                revenue,
                average_order,
            }
        });
        Self { customers: customers.filter(|customer| customer.total_orders > 0).collect() }
    }
}

impl Products {
    pub(super) fn of(orders: &[Order], products: Vec<Product>) -> Self {
        let sold = products.into_iter().filter_map(|Product { product_id, name, category }| {
            let (total_orders, completed_orders, revenue) =
                tally(orders.iter().filter(|order| order.product_id == product_id));
            let conversion = (100 * completed_orders).checked_div(total_orders)?;
            Some(Sold {
                product_id,
                name,
                category,
                total_orders,
                completed_orders,
                revenue,
                conversion,
            })
        });
        Self { products: sold.collect() }
    }
}

impl Insights {
    /// None: nothing was sold.
    pub(super) fn of(customers: &Customers, products: &Products) -> Option<Self> {
        let mut segments = BTreeMap::new();
        for customer in &customers.customers {
            *segments.entry(customer.segment.clone()).or_default() += 1;
        }
        let mut categories: BTreeMap<String, Money> = BTreeMap::new();
        for sold in &products.products {
            let revenue = categories.entry(sold.category.clone()).or_default();
            *revenue = *revenue + sold.revenue;
        }
        let total_revenue: Money = customers.customers.iter().map(|of| of.revenue).sum();
        let of_customers = customers.customers.iter().map(|of| (of.user_id, &of.name, of.revenue));
        let of_products = products.products.iter().map(|of| (of.product_id, &of.name, of.revenue));
        (total_revenue > Money::default()).then(|| Self {
            total_revenue,
            top_customers: top(of_customers),
            top_products: top(of_products),
            segments,
            categories,
        })
    }
}

/// Those with most revenue; of the same revenue, the lower number first.
fn top<'n>(all: impl Iterator<Item = (u64, &'n String, Money)>) -> Vec<Top> {
    let mut all: Vec<Top> =
        all.map(|(id, name, revenue)| Top { id, name: name.clone(), revenue }).collect();
    all.sort_by_key(|of| (std::cmp::Reverse(of.revenue), of.id));
    all.truncate(TOP);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_is_rounded_to_the_cent_and_of_nothing_it_is_nothing() {
        for (cents, n, average_cents) in
            [(100, 3, 33), (200, 3, 67), (5, 2, 3), (7, 1, 7), (0, 0, 0)]
        {
            assert_eq!(average(Money::of_cents(cents), n).cents(), average_cents, "{cents} by {n}");
        }
    }

    #[test]
    fn of_the_same_revenue_the_lower_number_is_first_and_no_more_than_three_are_told() {
        let name = "n".to_owned();
        let all =
            [(4, 5), (2, 5), (9, 7), (1, 1)].map(|(id, cents)| (id, &name, Money::of_cents(cents)));
        let ids: Vec<u64> = top(all.into_iter()).iter().map(|of| of.id).collect();
        assert_eq!(ids, [9, 2, 4]);
    }
}
