(function () {
  var d = JSON.parse(document.querySelector('script[type="application/json"]').textContent), STEP = 120;
  var form = document.querySelector('form'), cards = document.querySelector('.cards');
  var more = document.querySelector('.more'), dialog = document.querySelector('dialog');
  var list = [], shown = 0, open = -1;
  function make(name, parent, cls, text) {
    var e = document.createElement(name);
    if (cls) e.className = cls;
    if (text !== undefined) e.textContent = text;
    parent.appendChild(e);
    return e;
  }
  function percent(v) { return (100 * v).toFixed(1) + ' %'; }
  function wrong(r) { return r.label !== null && r.name !== undefined && r.label !== r.name; }

  var counts = {};
  d.rows.forEach(function (r) { if (r.name !== undefined) counts[r.name] = (counts[r.name] || 0) + 1; });
  Object.keys(counts).sort().forEach(function (name) {
    make('option', form.elements.name, '', name + ' (' + counts[name] + ')').value = name;
  });

  function picture(row, parent) {
    var box = make('div', parent, 'picture');
    if (row.w && row.h && Math.max(row.w / row.h, row.h / row.w) < 4) box.style.aspectRatio = row.w + ' / ' + row.h;
    if (row.picture) {
      var below = make('img', box, 'below');
      below.loading = 'lazy';
      below.alt = '';
      below.src = row.picture;
    }
    if (row.map) {
      var map = make('img', box, 'map');
      map.loading = 'lazy';
      map.alt = 'relevance for ' + row.name;
      map.src = row.map;
      map.style.opacity = form.elements.opacity.value / 100;
    }
    return box;
  }
  function tokens(row, parent) {
    var p = make('p', parent, 'text');
    row.tokens.forEach(function (t) {
      p.appendChild(document.createTextNode(t[0]));
      var rgb = t[2] >= 0 ? d.red : d.blue, span = make('span', p, '', t[1]);
      span.style.background = 'rgba(' + rgb + ',' + 0.85 * Math.pow(Math.abs(t[2]), 0.7) + ')';
      if (t[3]) span.style.fontStyle = 'italic';
      span.title = t[2];
    });
  }
  function about(row, parent) {
    if (row.error !== null) { make('p', parent, 'error', row.error); return; }
    var said = row.name + (row.score === undefined ? '' : ', ' + percent(row.score));
    if (row.value !== undefined) said = row.name + ', ' + row.value.toPrecision(4);
    make('p', parent, wrong(row) ? 'wrong' : '', said + (wrong(row) ? ' (label ' + row.label + ')' : ''));
  }
  function add(at) {
    var row = list[at], card = make('button', cards, 'card');
    card.type = 'button';
    if (row.tokens) tokens(row, card); else if (row.picture || row.map) picture(row, card);
    if (row.text !== undefined) make('p', card, 'text', row.text);
    about(row, card);
    make('p', card, 'key', row.key).title = row.key;
    if (row.positive !== undefined) make('i', make('div', card, 'share')).style.width = percent(row.positive).replace(' ', '');
    card.addEventListener('click', function () { show(at); });
  }
  function grow() {
    var end = Math.min(list.length, shown + STEP);
    for (; shown < end; shown++) add(shown);
    more.hidden = shown >= list.length;
  }
  function update() {
    var f = form.elements, find = f.find.value.toLowerCase(), by = f.order.value, sign = f.down.checked ? -1 : 1;
    list = d.rows.filter(function (r) {
      if (f.name.value && r.name !== f.name.value) return false;
      if (f.shown.value === 'fine' && r.error !== null) return false;
      if (f.shown.value === 'error' && r.error === null) return false;
      if (f.shown.value === 'wrong' && !wrong(r)) return false;
      return !find || (r.key + ' ' + (r.label || '') + ' ' + (r.error || '')).toLowerCase().indexOf(find) >= 0;
    });
    list.sort(function (a, b) {
      var x = a[by], y = b[by];
      if (x === undefined || y === undefined) return x === y ? a.i - b.i : x === undefined ? 1 : -1;
      return x < y ? -sign : x > y ? sign : a.i - b.i;
    });
    shown = 0;
    cards.textContent = '';
    cards.classList.toggle('wide', d.rows.some(function (r) { return r.tokens; }));
    form.querySelector('output').textContent = list.length + ' of ' + d.rows.length;
    grow();
  }
  function show(at) {
    if (at < 0 || at >= list.length) return;
    open = at;
    var row = list[at], box = dialog.querySelector('div');
    box.textContent = '';
    make('h2', box, '', row.key);
    if (row.tokens) tokens(row, box);
    else if (row.picture || row.map) {
      var both = make('div', box, 'both');
      picture(row, both);
      if (row.picture) picture({ picture: row.picture, w: row.w, h: row.h }, make('div', both, 'plain'));
    }
    if (row.text !== undefined) make('p', box, 'text', row.text);
    about(row, box);
    if (row.positive !== undefined) {
      var against = row.against ? ', ' + row.against : '';
      make('p', box, 'soft', percent(row.positive) + ' of relevance speaks for it' + against + '; ← and → show others');
    }
    if (!dialog.open) dialog.showModal();
  }
  form.addEventListener('submit', function (e) { e.preventDefault(); });
  form.addEventListener('input', function (e) {
    if (e.target.name !== 'opacity') { update(); return; }
    document.querySelectorAll('img.map').forEach(function (m) { m.style.opacity = e.target.value / 100; });
  });
  more.addEventListener('click', grow);
  dialog.querySelector('.close').addEventListener('click', function () { dialog.close(); });
  dialog.addEventListener('keydown', function (e) {
    if (e.key === 'ArrowRight') show(open + 1);
    if (e.key === 'ArrowLeft') show(open - 1);
  });
  update();
})();
