//! The API: Twirp with JSON, answers in `snake_case` with all defaults, 64-bit integers as texts.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::super::pace::Pace;
use super::egress::Egress;
use super::{Fault, Participant, Server};

pub fn routes(cfg: &mut web::ServiceConfig) {
    cfg.route("/twirp/livekit.{service}/{method}", web::post().to(call));
}

/// Status, content type and body of an answer that is an error.
pub struct Refusal(u16, &'static str, String);

pub type Answer = Result<Value, Refusal>;

impl From<Refusal> for HttpResponse {
    fn from(Refusal(status, content_type, body): Refusal) -> Self {
        HttpResponse::build(StatusCode::from_u16(status).expect("a status")).content_type(content_type).body(body)
    }
}

fn refuse(status: u16, code: &str, message: &str) -> Refusal {
    Refusal(status, "application/json", json!({"code": code, "msg": message, "meta": {}}).to_string())
}

async fn call(req: HttpRequest, server: web::Data<Server>, body: web::Bytes) -> HttpResponse {
    answer(&req, &server, &body).await.map_or_else(HttpResponse::from, |answer| HttpResponse::Ok().json(answer))
}

async fn answer(req: &HttpRequest, server: &web::Data<Server>, body: &[u8]) -> Answer {
    let (service, method) = (&req.match_info()["service"], &req.match_info()["method"]);
    let malformed = |_| refuse(400, "malformed", "the json request could not be decoded");
    let request = snake_keys(serde_json::from_slice(body).map_err(malformed)?);
    server.note_call(method, &request);
    authorise(server, req, service, method, &request)?;
    let fault = server.fault_of(method);
    match fault {
        Some(Fault::Slow(ms)) => Pace::begin().reaches(ms).await,
        Some(Fault::Denied) => return Err(refuse(401, "unauthenticated", "permissions denied")),
        Some(Fault::NoWorker) => return Err(refuse(503, "unavailable", "no response from servers")),
        Some(Fault::Quota) => return Err(refuse(429, "resource_exhausted", "egress minutes exceeded")),
        Some(Fault::Precondition) => return Err(refuse(412, "failed_precondition", "not in this state")),
        Some(Fault::BadGateway) => return Err(Refusal(502, "text/html", "<html>Bad Gateway".to_owned())),
        Some(Fault::AnswerLost) | None => {}
    }
    let answer = dispatch(server, service, method, &request);
    if fault == Some(Fault::AnswerLost) {
        // Longer than anybody waits.
        Pace::begin().reaches(Duration::from_secs(120).as_millis() as u64).await;
    }
    answer
}

fn dispatch(server: &web::Data<Server>, service: &str, method: &str, request: &Value) -> Answer {
    let server = server.clone().into_inner();
    match (service, method) {
        ("Egress", "StartRoomCompositeEgress") => server.start_room_composite(request),
        ("Egress", "StartTrackEgress") => server.start_track(request),
        ("Egress", "ListEgress") => Ok(list_egress(&server, request)),
        ("Egress", "StopEgress") => stop_egress(&server, request),
        ("RoomService", "ListRooms") => Ok(list_rooms(&server, request)),
        ("RoomService", "CreateRoom") => {
            let name = text(request, "name");
            server.create_room(&name);
            Ok(server.state.lock().rooms[&name].snake())
        }
        ("RoomService", "DeleteRoom") => {
            server.delete_room(&text(request, "room"));
            Ok(json!({}))
        }
        ("RoomService", "ListParticipants") => {
            let state = server.state.lock();
            let room = state.rooms.get(&text(request, "room"));
            let all: Vec<_> =
                room.into_iter().flat_map(|room| room.participants.values().map(Participant::snake)).collect();
            Ok(json!({"participants": all}))
        }
        ("RoomService", "SendData") => {
            let is_there = server.state.lock().rooms.contains_key(&text(request, "room"));
            if !is_there {
                return Err(refuse(404, "not_found", "requested room does not exist"));
            }
            server.rtc.send_data(request);
            Ok(json!({}))
        }
        _ => Err(refuse(404, "bad_route", &format!("no handler for path \"/twirp/livekit.{service}/{method}\""))),
    }
}

pub fn text(request: &Value, field: &str) -> String {
    request[field].as_str().unwrap_or("").to_owned()
}

pub fn room_is_missing() -> Refusal {
    refuse(404, "not_found", "requested room does not exist")
}

fn list_egress(server: &Server, request: &Value) -> Value {
    let (room, id, active) = (text(request, "room_name"), text(request, "egress_id"), request["active"] == true);
    let state = server.state.lock();
    let items = state.egresses.iter().filter(|egress| room.is_empty() || egress.room_name == room);
    let items = items.filter(|egress| id.is_empty() || egress.id == id).filter(|egress| !active || !egress.is_over());
    json!({"items": items.map(Egress::snake).collect::<Vec<_>>(), "next_page_token": null})
}

fn stop_egress(server: &std::sync::Arc<Server>, request: &Value) -> Answer {
    let id = text(request, "egress_id");
    let status = server.state.lock().egresses.iter().find(|egress| egress.id == id).map(|egress| egress.status);
    match status {
        None => Err(refuse(404, "not_found", "egress does not exist")),
        Some("EGRESS_STARTING" | "EGRESS_ACTIVE") => {
            let answer = server.set_egress_status(&id, "EGRESS_ENDING").expect("it is there");
            server.end_egress(&id, "EGRESS_COMPLETE", "");
            Ok(answer)
        }
        Some(status) => {
            Err(refuse(412, "failed_precondition", &format!("egress with status {status} cannot be stopped")))
        }
    }
}

fn list_rooms(server: &Server, request: &Value) -> Value {
    let names: Vec<&str> = request["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let state = server.state.lock();
    let rooms = state.rooms.values().filter(|room| names.is_empty() || names.contains(&room.name.as_str()));
    json!({"rooms": rooms.map(super::Room::snake).collect::<Vec<_>>()})
}

/// A token that is none is answered in plain text, a grant that is missing in the words of Twirp.
fn authorise(server: &Server, req: &HttpRequest, service: &str, method: &str, request: &Value) -> Result<(), Refusal> {
    let header = req.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("");
    let token = header.strip_prefix("Bearer ").unwrap_or("");
    if let Err(error) = server.keys.verify(token) {
        return Err(Refusal(401, "text/plain", format!("invalid token: {error}\n")));
    }
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
    let grant = serde_json::from_slice::<Value>(&claims).unwrap_or_default()["video"].take();
    let is_granted = match (service, method) {
        ("Egress", _) => grant["roomRecord"] == true,
        (_, "ListRooms") => grant["roomList"] == true,
        (_, "CreateRoom" | "DeleteRoom") => grant["roomCreate"] == true,
        _ => grant["roomAdmin"] == true && grant["room"] == request["room"],
    };
    if is_granted { Ok(()) } else { Err(refuse(401, "unauthenticated", "permissions denied")) }
}

/// Requests may be in either spelling.
fn snake_keys(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (snake(&name), snake_keys(value))).collect(),
        Value::Array(items) => items.into_iter().map(snake_keys).collect(),
        other => other,
    }
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
