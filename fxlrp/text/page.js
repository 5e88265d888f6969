(function (root) {
  var d = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  var now = { row: 0, palette: 'red-blue' };
  function find(what) { return root.querySelector(what); }
  function all(what) { return [].slice.call(root.querySelectorAll(what)); }
  function most(row) { return row.reduce(function (m, v) { return Math.max(m, Math.abs(v)); }, 0) || 1; }
  function tint(t) { return fx.tint(now.palette, t); }
  var spans = all('.t'), buttons = all('button'), ends = all('.end'), table = find('table');
  var words = spans.map(function (s) { return s.textContent.trim() || '␣'; });

  function show() {
    var row = d.rows[now.row], top = most(row);
    spans.forEach(function (s, i) {
      s.style.background = fx.css(tint(row[i] / top));
      s.style.color = fx.ink(tint(row[i] / top));
      s.setAttribute('data-score', fx.said(row[i]));
      s.classList.toggle('asked', d.tokens[now.row] === i);
    });
    find('.question').textContent = d.asked[now.row];
    ends.forEach(function (e, i) { e.textContent = fx.said((2 * i - 1) * top); });
    find('.bar').style.background = fx.bar(function (t) { return fx.css(tint(t)); });
    fx.list(find('.words'), d.words[now.row]);
    buttons.forEach(function (b, i) { b.setAttribute('aria-pressed', i === now.row); });
    if (table) [].forEach.call(table.rows, function (line, k) {
      line.setAttribute('aria-current', k === now.row + 1);
      if (k) d.rows[k - 1].forEach(function (v, i) {
        line.cells[i + 1].style.background = fx.css(tint(v / most(d.rows[k - 1])));
      });
    });
    root.setAttribute('data-shown', now.row);
  }
  function ask(k) { now.row = k; show(); }

  buttons.forEach(function (b, i) { b.addEventListener('click', function () { ask(i); }); });
  d.tokens.forEach(function (t, k) {
    if (t !== null && d.tokens.indexOf(t) === k) spans[t].addEventListener('click', function () { ask(k); });
  });
  if (table) {
    var line = table.insertRow();
    [''].concat(words).forEach(function (w) { line.insertCell().textContent = w; });
    d.rows.forEach(function (row, k) {
      var line = table.insertRow();
      line.insertCell().textContent = buttons[k].textContent;
      row.forEach(function (v, i) { line.insertCell().title = words[i] + ' ' + fx.said(v); });
      line.addEventListener('click', function () { ask(k); });
    });
  }
  find('select').addEventListener('change', function (e) { now.palette = e.target.value; show(); });
  show();
})
