//! The captions page at `/` and its files, embedded in the binary.

use actix_web::http::header::{self, EntityTag, Header, IfNoneMatch};
use actix_web::{HttpRequest, HttpResponse, web};
use sha2::{Digest, Sha256};

/// No inline script or style, nothing from elsewhere; the page may be framed by its own origin alone.
const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'";

struct Asset {
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const ASSETS: [Asset; 5] = [
    Asset { path: "/", content_type: HTML, body: include_str!("../../web/index.html") },
    Asset {
        path: "/captions.css",
        content_type: "text/css; charset=utf-8",
        body: include_str!("../../web/captions.css"),
    },
    Asset { path: "/captions.js", content_type: SCRIPT, body: include_str!("../../web/captions.js") },
    Asset { path: "/stenocast.js", content_type: SCRIPT, body: include_str!("../../web/stenocast.js") },
    Asset { path: "/favicon.svg", content_type: "image/svg+xml", body: include_str!("../../web/favicon.svg") },
];

pub fn configure(cfg: &mut web::ServiceConfig) {
    for asset in &ASSETS {
        let tag = EntityTag::new_strong(hex::encode(&Sha256::digest(asset.body)[..8]));
        cfg.service(super::read(asset.path, move |req: HttpRequest| answer(req, asset, tag.clone())));
    }
}

async fn answer(req: HttpRequest, asset: &'static Asset, tag: EntityTag) -> HttpResponse {
    let unchanged = match IfNoneMatch::parse(&req) {
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(&tag)),
        _ => false,
    };
    let mut response = if unchanged { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header(header::ETag(tag))
        // Asked for again each time: a new server has a new page.
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header(("Cross-Origin-Opener-Policy", "same-origin"));
    if unchanged {
        return response.finish();
    }
    response.insert_header((header::CONTENT_TYPE, asset.content_type)).body(asset.body)
}
