//! One client's life through pgherd, next to a twin that has a PostgreSQL of its own and is told the same.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::dice::{Dice, Step};
use super::line::{Answer, Line, Until};
use super::look::{Verdict, compare, look};
use super::scene::Scene;

/// Steps of a client that keeps its server connection from everybody else.
const STEPS_WHEN_PINNED: u32 = 6;

/// Why a life is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It had said what it had to say, or vanished in the middle of it.
    Died,
    /// Its server was killed.
    Lost,
    /// pgherd refused something that its twin did: from there on the two differ.
    Refused,
    /// What must never be.
    Wrong,
}

struct Life<'a> {
    scene: &'a Scene,
    through: Line,
    straight: Line,
    dice: Dice,
    /// The transaction's status, as both sides say.
    status: u8,
    has_prepared: bool,
    /// Everything that was said, for whoever must find out.
    said: Vec<String>,
}

/// Lives one life; what goes wrong is noted in the scene.
pub(super) async fn live(scene: &Scene, number: u64) {
    let mut random = StdRng::seed_from_u64(scene.seed.wrapping_add(number));
    let mark = format!("me_{:07}", number % 10_000_000);
    let parameters = startup(&mut random, &mark, &scene.roles[0]);
    let pairs = |database: &'static str| -> Vec<(&str, &str)> {
        let own = [("user", "postgres"), ("database", database)];
        own.into_iter().chain(parameters.iter().map(|(name, value)| (*name, value.as_str()))).collect()
    };
    let (behind, beside) = (scene.behind.name.clone(), scene.beside.name.clone());
    let named = |database: &str| -> Vec<(String, String)> {
        pairs("")
            .into_iter()
            .map(|(name, value)| {
                let value = if name == "database" { database } else { value };
                (name.to_owned(), value.to_owned())
            })
            .collect()
    };
    let (through, straight) = tokio::join!(open(scene.port, named(&behind)), open(scene.beside.port, named(&beside)));
    let straight = straight.unwrap_or_else(|answer| panic!("PostgreSQL takes no client: {answer:?}"));
    let through = match through {
        Ok(line) => line,
        Err(answer) => {
            let lost = answer.ended || answer.messages.iter().any(|it| it.tag == b'E');
            return if scene.kills && lost {
                scene.figures.lost.more()
            } else {
                scene.wrong(number, &[], format!("no login: {answer:?}"))
            };
        }
    };
    let has_role = parameters.iter().any(|(name, _)| *name == "role");
    let mut dice = Dice::new(random, mark, i64::try_from(number % 1_000_000).expect("small") * 10, scene.roles.clone());
    // Of a session that is another's, RESET ROLE sets a startup role again only if that other may.
    dice.is_itself = has_role;
    let mut life = Life {
        scene,
        through,
        straight,
        dice,
        status: b'I',
        has_prepared: false,
        said: vec![format!("login {parameters:?}")],
    };
    if life.through.told != life.straight.told {
        let told = format!("GREETING {:?} where PostgreSQL said {:?}", life.through.told, life.straight.told);
        return scene.wrong(number, &life.said, told);
    }
    match life.run(number).await {
        End::Died => {
            scene.figures.deaths.more();
            life.die().await;
        }
        End::Lost => scene.figures.lost.more(),
        End::Refused => scene.figures.refused.more(),
        End::Wrong => {}
    }
    scene.figures.lives.more();
}

async fn open(port: u16, parameters: Vec<(String, String)>) -> Result<Line, Answer> {
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Line::open(port, &parameters).await
}

/// What a client asks for when it logs in.
fn startup(random: &mut StdRng, mark: &str, role: &str) -> Vec<(&'static str, String)> {
    let mut parameters = Vec::new();
    if random.random_ratio(1, 3) {
        parameters.push(("application_name", format!("{mark} at startup")));
    }
    if random.random_ratio(1, 4) {
        parameters.push(("TimeZone", "Asia/Kolkata".to_owned()));
    }
    if random.random_ratio(1, 4) {
        parameters.push(("options", format!("-c work_mem=5MB -c app.tenant={mark} -c search_path=b")));
    }
    if random.random_ratio(1, 8) {
        parameters.push(("DateStyle", "German".to_owned()));
    }
    if random.random_ratio(1, 12) {
        parameters.push(("role", role.to_owned()));
    }
    parameters
}

impl Life<'_> {
    async fn run(&mut self, number: u64) -> End {
        let introduction = self.dice.introduction();
        let mut left = self.dice.random.random_range(3..40);
        let mut end = self.step(number, introduction).await;
        while end.is_none() && left > 0 && !self.scene.is_over() {
            left -= 1;
            let step = self.dice.next(self.status);
            if step.pins {
                left = left.min(STEPS_WHEN_PINNED);
                self.scene.figures.pinned.more();
            }
            let is_open = matches!(step.until, Until::Any(_));
            end = self.step(number, step).await;
            if end.is_none() && is_open {
                let sync = self.dice.sync();
                end = self.step(number, sync).await;
            }
            if end.is_none() {
                let nonce = format!("{} {left}", self.dice.mark);
                let mut had = self.has_prepared && self.has_look();
                let look = look(&mut self.dice.random, &nonce, &mut had);
                self.has_prepared = had;
                end = self.step(number, look).await;
                self.scene.figures.looks.more();
            }
        }
        end.unwrap_or(End::Died)
    }

    /// Whether the statement of the name `look` is still there: nothing said since could have taken it.
    fn has_look(&self) -> bool {
        !self.said.iter().rev().take(2).any(|it| it.contains("discard all") || it.contains("deallocate all"))
    }

    /// Says it on both sides, and compares what they answer.
    async fn step(&mut self, number: u64, step: Step) -> Option<End> {
        self.said.push(format!("[{}] {}", char::from(self.status), step.name));
        self.scene.figures.steps.more();
        tokio::join!(self.through.send(&step.said), self.straight.send(&step.said));
        if step.cancels {
            return self.cancel(number, step).await;
        }
        let (through, straight) = tokio::join!(self.through.read(step.until), self.straight.read(step.until));
        self.judge(number, &step, &through, &straight)
    }

    fn judge(&mut self, number: u64, step: &Step, through: &Answer, straight: &Answer) -> Option<End> {
        let had_failed = self.status == b'E';
        if let Some(ready) = straight.messages.iter().rev().find(|message| message.tag == b'Z') {
            self.status = ready.body[0];
        }
        match compare(step, &self.dice.mark, through, straight, (&self.through, &self.straight), had_failed) {
            Verdict::Same => None,
            Verdict::Refused => Some(End::Refused),
            Verdict::Lost if self.scene.kills => Some(End::Lost),
            Verdict::Lost => {
                self.scene.wrong(number, &self.said, format!("LOST though nothing was killed: {through:?}"));
                Some(End::Wrong)
            }
            Verdict::Wrong(what) => {
                self.scene.wrong(number, &self.said, what);
                Some(End::Wrong)
            }
        }
    }

    /// Cancels what runs, as often as it takes: a cancel may come before its statement has begun.
    async fn cancel(&mut self, number: u64, step: Step) -> Option<End> {
        let until = step.until;
        let one = async |line: &mut Line| {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                line.cancel().await;
                if let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), line.peek()).await {
                    return answer;
                }
            }
        };
        let ((), ()) = tokio::join!(one(&mut self.through), one(&mut self.straight));
        let (through, straight) = tokio::join!(self.through.read(until), self.straight.read(until));
        self.scene.figures.cancels.more();
        self.judge(number, &step, &through, &straight)
    }

    /// Vanishes: in order, between two messages, inside one, or while an answer comes.
    async fn die(mut self) {
        let status = self.status;
        let next = self.dice.next(status);
        match self.dice.random.random_range(0..6) {
            0 => self.through.send(b"X\0\0\0\x04").await,
            1 => {}
            2 => self.through.send(&next.said).await,
            3 => {
                self.through.send(&next.said).await;
                self.through.reset();
            }
            4 => {
                self.through
                    .send(b"Q\0\0\0\x4aselect n, repeat('x', 900) from generate_series(1, 20000) n /* bye */\0")
                    .await;
                let _ = tokio::time::timeout(Duration::from_millis(5), self.through.peek()).await;
                self.through.reset();
            }
            _ => {
                let end = self.dice.random.random_range(0..=next.said.len());
                self.through.send(&next.said[..end]).await;
                self.through.reset();
            }
        }
    }
}
