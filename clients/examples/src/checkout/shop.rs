//! The way to the payment gateway, the inventory and the mail, over HTTP. What a server answers
//! becomes a result or a problem here, and nowhere else.

use std::{collections::BTreeMap, time::Duration};

use reqwest::{Client as Http, Response, StatusCode, header::RETRY_AFTER};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{cart::ValidItem, money::Money, order::Payment, problem::Problem};

/// What a server that asks to wait is given if it does not say how long.
const WAIT_DEFAULT: Duration = Duration::from_secs(1);

/// The servers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Shop {
    http: Http,
    address: String,
}

/// How a server is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// The same for each attempt at one thing.
    pub(super) idempotency_key: &'a str,
    /// How long the server may take.
    pub(super) timeout: Duration,
}

/// The result of `process_payment`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Paid {
    pub(super) payment_id: String,
    pub(super) transaction_id: String,
    pub(super) amount_charged: Money,
    pub(super) status: String,
}

/// The result of `update_inventory`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Reservation {
    pub(super) updated_products: Vec<UpdatedProduct>,
    pub(super) total_items_reserved: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct UpdatedProduct {
    pub(super) product_id: u64,
    pub(super) previous_stock: i64,
    pub(super) new_stock: i64,
    pub(super) quantity_reserved: i64,
    pub(super) reservation_id: String,
}

/// The result of `send_confirmation`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Confirmation {
    pub(super) email_sent: bool,
    pub(super) recipient: String,
    pub(super) message_id: String,
}

impl Shop {
    /// The servers at `http://host:port`.
    pub(super) fn at(address: &str) -> Self {
        // Another part of the process may have chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // They are beside us: a proxy for the world outside is not asked, and no roots are trusted.
        let http = Http::builder().no_proxy().tls_certs_only([]).build();
        let http = http.expect("nothing to set up that can fail");
        Self { http, address: address.trim_end_matches('/').to_owned() }
    }

    /// Charges what the cart costs, if that is what the customer agreed to.
    pub(super) async fn pay(
        &self,
        call: &Call<'_>,
        payment: &Payment,
        total: Money,
    ) -> Result<Paid, Problem> {
        let Payment { amount, currency, token, .. } = payment;
        if *amount != total {
            let what = format!("{amount} was agreed to, the cart costs {total}");
            return Err(Problem::refused("PAYMENT_AMOUNT_MISMATCH", what));
        }
        if token.is_empty() {
            return Err(Problem::refused("MISSING_PAYMENT_TOKEN", "no card was given"));
        }
        let charge = json!({"amount": total, "currency": currency, "token": token});
        self.call("gateway/charge", call, &charge, |status, why| match status {
            StatusCode::PAYMENT_REQUIRED => Some(Problem::refused("PAYMENT_DECLINED", why)),
            _ => None,
        })
        .await
    }

    /// Reserves what the cart holds.
    pub(super) async fn reserve(
        &self,
        call: &Call<'_>,
        items: &[ValidItem],
        stock: &BTreeMap<String, i64>,
    ) -> Result<Reservation, Problem> {
        let items = items.iter().map(|item| {
            let (product_id, quantity) = (item.product_id, item.quantity);
            json!({"product_id": product_id, "quantity": quantity})
        });
        let reserve = json!({"items": items.collect::<Vec<_>>(), "stock": stock});
        self.call("inventory/reserve", call, &reserve, |status, why| match status {
            StatusCode::CONFLICT => Some(Problem::out_of_stock(why)),
            _ => None,
        })
        .await
    }

    /// Mails that the order is confirmed.
    pub(super) async fn confirm(
        &self,
        call: &Call<'_>,
        to: &str,
        order_number: &str,
    ) -> Result<Confirmation, Problem> {
        let mail = json!({"to": to, "subject": format!("Your order {order_number}")});
        self.call("mail/send", call, &mail, |status, why| match status {
            StatusCode::UNPROCESSABLE_ENTITY => Some(Problem::refused("INVALID_EMAIL", why)),
            _ => None,
        })
        .await
    }

    /// Calls a server. `own` knows what refusals mean that only this server has.
    async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        call: &Call<'_>,
        body: &serde_json::Value,
        own: impl Fn(StatusCode, String) -> Option<Problem>,
    ) -> Result<T, Problem> {
        let no_answer = |error: reqwest::Error| Problem::unavailable(format!("{path}: {error}"));
        let request = self.http.post(format!("{}/{path}", self.address));
        let request = request.header("idempotency-key", call.idempotency_key).json(body);
        let response = request.timeout(call.timeout).send().await.map_err(no_answer)?;
        let status = response.status();
        if status.is_success() {
            return response.json().await.map_err(no_answer);
        }
        let wait = seconds(&response).unwrap_or(WAIT_DEFAULT);
        let why = why(response).await;
        if let Some(problem) = own(status, why.clone()) {
            return Err(problem);
        }
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => Problem::rate_limited(why, wait),
            status if status.is_server_error() => Problem::unavailable(why),
            // It is our call that is wrong.
            status => Problem::refused("BAD_CALL", format!("{path}: {status}: {why}")),
        })
    }
}

fn seconds(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The reason that a server gives.
async fn why(response: Response) -> String {
    #[derive(Deserialize)]
    struct Said {
        error: String,
    }
    let said: Result<Said, _> = response.json().await;
    said.map_or_else(|_| "no reason given".to_owned(), |said| said.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkout::{
        orders::catalogue,
        problem::Cure,
        servers::{self, gateway, mail},
    };

    async fn shop() -> Shop {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(servers::serve(listener));
        Shop::at(&address)
    }

    fn call(idempotency_key: &str) -> Call<'_> {
        Call { idempotency_key, timeout: Duration::from_secs(20) }
    }

    const TOTAL: Money = Money::of_cents(12_476);

    fn payment(token: &str) -> Payment {
        Payment {
            method: "credit_card".into(),
            amount: TOTAL,
            currency: "USD".into(),
            token: token.into(),
        }
    }

    #[tokio::test]
    async fn a_step_is_charged_once_however_often_it_asks() {
        let shop = shop().await;
        let paid = shop.pay(&call("t.1"), &payment(gateway::VALID), TOTAL).await.unwrap();
        assert_eq!((paid.amount_charged, paid.status.as_str()), (TOTAL, "completed"));
        let again = shop.pay(&call("t.1"), &payment(gateway::VALID), TOTAL).await.unwrap();
        assert_eq!(again, paid);
        shop.pay(&call("u.1"), &payment(gateway::VALID), TOTAL).await.unwrap();
        let charges = shop.http.get(format!("{}/gateway/charges", shop.address)).send();
        let charges: serde_json::Value = charges.await.unwrap().json().await.unwrap();
        assert_eq!(charges.to_string(), r#"{"charges":2,"total":249.52}"#);
    }

    #[tokio::test]
    async fn a_key_is_good_for_one_request_only() {
        let shop = shop().await;
        shop.pay(&call("t.1"), &payment(gateway::VALID), TOTAL).await.unwrap();
        let other = Payment { amount: Money::of_cents(1), ..payment(gateway::VALID) };
        let problem = shop.pay(&call("t.1"), &other, other.amount).await.unwrap_err();
        assert_eq!((problem.code, problem.cure), ("BAD_CALL", Cure::None));
    }

    #[tokio::test]
    async fn a_declined_card_is_declined_for_good() {
        let shop = shop().await;
        for (token, why) in gateway::DECLINED {
            let problem = shop.pay(&call(token), &payment(token), TOTAL).await.unwrap_err();
            assert_eq!(problem, Problem::refused("PAYMENT_DECLINED", why));
        }
    }

    #[tokio::test]
    async fn what_was_not_agreed_to_or_has_no_card_is_refused_before_the_gateway() {
        let nobody = Shop::at("http://127.0.0.1:9");
        let other = Money::of_cents(12_477);
        let problem = nobody.pay(&call("t.1"), &payment(gateway::VALID), other).await.unwrap_err();
        assert_eq!((problem.code, problem.cure), ("PAYMENT_AMOUNT_MISMATCH", Cure::None));
        let problem = nobody.pay(&call("t.1"), &payment(""), TOTAL).await.unwrap_err();
        assert_eq!((problem.code, problem.cure), ("MISSING_PAYMENT_TOKEN", Cure::None));
    }

    #[tokio::test]
    async fn a_gateway_that_fails_twice_works_the_third_time() {
        let shop = shop().await;
        for (token, code, cure) in [
            (gateway::BUSY_TWICE, "RATE_LIMITED", Cure::After(Duration::from_secs(1))),
            (gateway::UNAVAILABLE_TWICE, "SERVICE_UNAVAILABLE", Cure::Time),
        ] {
            for _ in 0..2 {
                let problem = shop.pay(&call(token), &payment(token), TOTAL).await.unwrap_err();
                assert_eq!((problem.code, &problem.cure), (code, &cure));
            }
            shop.pay(&call(token), &payment(token), TOTAL).await.unwrap();
        }
    }

    #[tokio::test]
    async fn servers_that_cannot_be_reached_may_come_back() {
        // A port that was ours and is nobody's now.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let problem = Shop::at(&address)
            .pay(&call("t.1"), &payment(gateway::VALID), TOTAL)
            .await
            .unwrap_err();
        assert_eq!((problem.code, problem.cure), ("SERVICE_UNAVAILABLE", Cure::Time));
    }

    fn items(wanted: &[(u64, i64)]) -> Vec<ValidItem> {
        let products = catalogue().products;
        let item = |&(product_id, quantity): &(u64, i64)| {
            let price = products[&product_id.to_string()].price;
            let (name, line_total) = (String::new(), price.times(quantity));
            ValidItem { product_id, name, quantity, price, line_total }
        };
        wanted.iter().map(item).collect()
    }

    #[tokio::test]
    async fn what_is_in_stock_is_reserved() {
        let stock = BTreeMap::from([("1".to_owned(), 100), ("2".to_owned(), 100)]);
        let items = items(&[(1, 2), (2, 1)]);
        let reserved = shop().await.reserve(&call("t.2"), &items, &stock).await.unwrap();
        assert_eq!(reserved.total_items_reserved, 3);
        let stocks = reserved.updated_products.iter().map(|p| (p.previous_stock, p.new_stock));
        assert_eq!(stocks.collect::<Vec<_>>(), [(100, 98), (100, 99)]);
    }

    #[tokio::test]
    async fn what_is_not_in_stock_may_come_also_if_one_product_stands_in_two_lines() {
        let shop = shop().await;
        let stock = BTreeMap::from([("1".to_owned(), 10)]);
        for wanted in [&[(1, 11)][..], &[(1, 6), (1, 5)], &[(2, 1)]] {
            let problem = shop.reserve(&call("t.2"), &items(wanted), &stock).await.unwrap_err();
            assert_eq!((problem.code, problem.cure), ("INSUFFICIENT_STOCK", Cure::Time));
            assert!(problem.message.starts_with("Insufficient stock"), "{}", problem.message);
        }
        shop.reserve(&call("t.2"), &items(&[(1, 10)]), &stock).await.unwrap();
    }

    #[tokio::test]
    async fn mail_is_sent_refused_or_put_off() {
        let shop = shop().await;
        let sent = shop.confirm(&call("t.4"), "customer@example.com", "ORD-1").await.unwrap();
        assert!(sent.email_sent);
        assert_eq!(sent.recipient, "customer@example.com");
        for wrong in ["", "nobody", "@example.com", "a@", "a@b", "a b@example.com"] {
            let problem = shop.confirm(&call("u.4"), wrong, "ORD-1").await.unwrap_err();
            assert_eq!((problem.code, problem.cure), ("INVALID_EMAIL", Cure::None), "{wrong}");
        }
        let busy = format!("{}ada@example.com", mail::BUSY_ONCE);
        let problem = shop.confirm(&call("v.4"), &busy, "ORD-1").await.unwrap_err();
        assert_eq!(problem.code, "RATE_LIMITED");
        assert_eq!(problem.cure, Cure::After(Duration::from_secs(1)));
        shop.confirm(&call("v.4"), &busy, "ORD-1").await.unwrap();
    }
}
