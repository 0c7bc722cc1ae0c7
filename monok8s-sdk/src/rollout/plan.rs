//! The planner, as a table of contents.

use k8s_openapi::jiff::Timestamp;

use super::action::Plan;
use super::draft::Draft;
use super::fleet::Fleet;
use super::govern::Stands;
use super::index::Index;
use super::judge::judge;
use super::survey::Survey;
use super::sweep::{self, Wanted};
use super::{boot, report, stage};

/// What was found of the objects of a fleet, for the next plan of it.
#[derive(Clone, Debug, Default)]
pub struct PlanMemory {
    index: Index,
}

/// What to do now, over all upgrades at once. Pure: the same fleet and time always give the same
/// plan, and the plan of a fleet that is where it should be has no actions.
#[must_use]
pub fn plan(fleet: &Fleet, now: Timestamp) -> Plan {
    plan_with(&mut PlanMemory::default(), fleet, now)
}

/// The same plan as [`plan()`] makes, sooner: what was found of an object for the plan before is not looked for again
/// as long as the fleet has the same `Arc` of it. What is remembered makes no other difference. The memory keeps the
/// objects of the last fleet.
#[must_use]
pub fn plan_with(memory: &mut PlanMemory, fleet: &Fleet, now: Timestamp) -> Plan {
    memory.index.follow(fleet);
    let survey = Survey::new(fleet, &memory.index, now);
    let stands = Stands::new(&survey);
    let mut draft = draft(&survey, &stands);
    let outlooks = survey
        .campaigns
        .iter()
        .map(|campaign| {
            let waits = draft.take_waits(campaign);
            (campaign.view.uid().to_owned(), judge(&survey, campaign, &stands, waits))
        })
        .collect();
    let (actions, next_event) = draft.finish();
    Plan { actions, outlooks, next_event }
}

/// What is done about the fleet, and what waits.
pub(super) fn draft<'f>(survey: &Survey<'f>, stands: &Stands<'f>) -> Draft<'f> {
    let wanted = Wanted::new(survey, stands);
    let mut draft = Draft::default();

    sweep::create_os_nodes(survey, &mut draft);
    stage::stage(survey, stands, &mut draft);
    boot::take_turns(survey, stands, &mut draft);
    sweep::withdraw(survey, &wanted, &mut draft);
    sweep::uncordon(survey, &wanted, &mut draft);
    sweep::collect_garbage(survey, &mut draft);
    survey.control_plane_changes().for_each(|at| draft.wake_at(at));
    for campaign in &survey.campaigns {
        campaign.window_changes().for_each(|at| draft.wake_at(at));
    }
    report::report(survey, stands, &wanted, &mut draft);
    draft
}
