use super::*;

async fn names(bed: &Bed, args: &ListArgs) -> Result<Vec<String>, ApiError> {
    let all = bed.ops.list(&admin(), &Target::new(Kind::Pod, "default", ""), args).await?;
    Ok(all.items.into_iter().map(|i| i.key.name).collect())
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let bed = Bed::new().await;
    for i in 0..7 {
        bed.create(Kind::Pod, &pod(&format!("p{i}"))).await.unwrap();
    }
    let place = Target::new(Kind::Pod, "", "");
    let mut args = ListArgs { limit: 3, ..ListArgs::default() };
    let mut seen = Vec::new();
    let mut revisions = Vec::new();
    loop {
        let page = bed.ops.list(&admin(), &place, &args).await.unwrap();
        seen.extend(page.items.iter().map(|i| i.key.name.clone()));
        revisions.push(page.revision);
        if page.continue_token.is_empty() {
            break;
        }
        args.continue_token = page.continue_token;
        // Changes between the pages do not show.
        let _ = bed.delete(&admin(), &target(Kind::Pod, "p6"), None).await;
        let _ = bed.create(Kind::Pod, &pod("p35")).await;
    }
    assert_eq!(seen, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);
    assert!(revisions.iter().all(|r| *r == revisions[0]), "{revisions:?}");
    args.continue_token = "nonsense".into();
    let error = refused(bed.ops.list(&admin(), &place, &args).await);
    assert!(matches!(error, ApiError::BadRequest(_)));
}

#[tokio::test]
async fn selectors_choose_and_page_together() {
    let bed = Bed::new().await;
    for i in 0..10 {
        let mut p = pod(&format!("p{i}"));
        p["metadata"]["labels"]["parity"] = if i % 2 == 0 { "even" } else { "odd" }.into();
        bed.create(Kind::Pod, &p).await.unwrap();
    }
    bed.bind("p3", "n1").await;
    let labels = |text: &str| ListArgs { label_selector: text.into(), ..ListArgs::default() };
    let fields = |text: &str| ListArgs { field_selector: text.into(), ..ListArgs::default() };
    assert_eq!(names(&bed, &labels("parity=odd,app in (web)")).await.unwrap().len(), 5);
    assert_eq!(names(&bed, &labels("!parity")).await.unwrap().len(), 0);
    assert_eq!(names(&bed, &fields("spec.nodeName=n1")).await.unwrap(), ["p3"]);
    assert_eq!(names(&bed, &fields("spec.nodeName=")).await.unwrap().len(), 9);
    assert_eq!(names(&bed, &fields("metadata.name=p4")).await.unwrap(), ["p4"]);
    // A field that is not kept beside the object.
    assert_eq!(names(&bed, &fields("spec.restartPolicy=Always")).await.unwrap().len(), 10);
    assert_eq!(names(&bed, &fields("spec.restartPolicy!=Always")).await.unwrap().len(), 0);
    for bad in [labels("a in (b"), fields("spec.colour=red")] {
        assert!(matches!(refused(names(&bed, &bad).await), ApiError::BadRequest(_)));
    }
    let mut args = ListArgs { limit: 2, ..labels("parity=odd") };
    let mut seen = Vec::new();
    loop {
        let page = bed.ops.list(&admin(), &Target::new(Kind::Pod, "", ""), &args).await.unwrap();
        assert!(page.items.len() <= 2);
        seen.extend(page.items.into_iter().map(|i| i.key.name));
        if page.continue_token.is_empty() {
            break;
        }
        args.continue_token = page.continue_token;
    }
    assert_eq!(seen, ["p1", "p3", "p5", "p7", "p9"]);
}

#[tokio::test]
async fn the_pods_of_a_node_are_looked_up_and_paged_like_others() {
    let bed = Bed::new().await;
    let other = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    bed.create(Kind::Namespace, &other).await.unwrap();
    for i in 0..6 {
        bed.create(Kind::Pod, &pod(&format!("p{i}"))).await.unwrap();
        bed.bind(&format!("p{i}"), if i % 2 == 0 { "n1" } else { "n2" }).await;
    }
    let mut there = pod("there");
    there["metadata"]["namespace"] = "other".into();
    there["spec"]["nodeName"] = "n1".into();
    bed.create(Kind::Pod, &there).await.unwrap();
    // Found by the index, all of them and no others, at the revision of the whole.
    let (all, default) = (Target::new(Kind::Pod, "", ""), Target::new(Kind::Pod, "default", ""));
    let mut selectors = encode::Selectors::parse(Kind::Pod, "", "spec.nodeName=n1").unwrap();
    let page = bed.ops.looked_up(&all, &selectors).unwrap();
    let found: Vec<_> = page.items.iter().map(|o| o.key.name.as_str()).collect();
    assert_eq!((found, page.revision), (vec!["p0", "p2", "p4", "there"], bed.ops.store().revision()));
    assert_eq!(bed.ops.looked_up(&default, &selectors).unwrap().items.len(), 3);
    selectors.force("spec.nodeName", "n2".into());
    assert_eq!(bed.ops.looked_up(&all, &selectors).unwrap().items.len(), 3, "what the role adds is what counts");
    // Nobody has no node by the index: that is searched for.
    for fields in ["", "spec.nodeName=", "spec.nodeName!=n1", "metadata.name=p0"] {
        let selectors = encode::Selectors::parse(Kind::Pod, "", fields).unwrap();
        assert!(bed.ops.looked_up(&all, &selectors).is_none(), "{fields:?}");
    }
    // Later pages go on where the first one ended, at its revision.
    let mut args = ListArgs { limit: 1, ..ListArgs::default() };
    let mut seen = Vec::new();
    loop {
        let page = bed.ops.list(&agent("n1"), &all, &args).await.unwrap();
        seen.extend(page.items.into_iter().map(|i| i.key.name));
        if page.continue_token.is_empty() {
            break;
        }
        args.continue_token = page.continue_token;
        let _ = bed.create(Kind::Pod, &pod("late")).await;
    }
    assert_eq!(seen, ["p0", "p2", "p4", "there"]);
}

#[tokio::test]
async fn the_network_projection_is_slim_and_of_pods_only() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    bed.create(Kind::Pod, &pod("nowhere-yet")).await.unwrap();
    bed.bind("p", "n1").await;
    let args = ListArgs { network: true, ..ListArgs::default() };
    let all = bed.ops.list(&admin(), &Target::new(Kind::Pod, "", ""), &args).await.unwrap();
    assert_eq!(all.items.len(), 1, "no node has the other: it has no address");
    let slim = read(&all.items[0]);
    assert_eq!(slim["spec"]["containers"], json!([{"name": "a"}]));
    assert_eq!(slim["metadata"]["labels"], json!({"app": "web"}));
    assert!(slim["spec"]["tolerations"].is_null());
    let error = refused(bed.ops.list(&admin(), &Target::new(Kind::Node, "", ""), &args).await);
    assert!(matches!(error, ApiError::BadRequest(_)));
}
